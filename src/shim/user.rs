//! Who a process runs as: names and numbers resolved by the container's own `/etc/passwd` and
//! `/etc/group`, after the rules of the Docker engine.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Bytes read of a container's passwd or group file.
const FILE_BYTES: u64 = 1 << 20;
/// Further groups one process may have.
const GROUPS: usize = 1_024;

/// A user or group that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum UserError {
    /// No line of the passwd file has this name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No line of the group file has this name.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number no kernel knows.
    #[error("uids and gids must be in range 0-2147483647")]
    Range,
    /// More groups than a process may have.
    #[error("a process may have at most {GROUPS} further groups")]
    TooManyGroups,
}

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    /// User.
    pub(super) uid: u32,
    /// Group.
    pub(super) gid: u32,
    /// Further groups, the main one first, as Docker sets them.
    pub(super) groups: Vec<u32>,
}

/// What the container's root says of users and groups.
#[derive(Debug, Default, Clone)]
pub(super) struct Accounts {
    pub(super) passwd: String,
    pub(super) group: String,
}

impl Accounts {
    /// Reads both files below `root`. One that is missing, or is no regular file, is empty.
    /// Links in the root lead nowhere outside of it.
    #[must_use]
    pub(super) fn read(root: &Path) -> Self {
        let read = |name| read_below(root, name).unwrap_or_default();
        Self { passwd: read("etc/passwd"), group: read("etc/group") }
    }

    /// Resolves `user[:group]` (empty: root) and further groups.
    ///
    /// # Errors
    /// Any [`UserError`].
    pub(super) fn resolve(&self, spec: &str, further: &[String]) -> Result<User, UserError> {
        let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
        let wanted = if user.is_empty() { "0" } else { user };
        let entry = match number(wanted)? {
            Some(uid) => self.passwd_lines().find(|e| e.uid == uid),
            None => self.passwd_lines().find(|e| e.name == wanted),
        };
        let (uid, main, name) = match (&entry, number(wanted)?) {
            (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name)),
            (None, Some(uid)) => (uid, 0, None),
            (None, None) => return Err(UserError::NoUser(wanted.to_owned())),
        };
        let gid = if group.is_empty() { main } else { self.gid(group)? };
        let mut groups = vec![gid];
        if group.is_empty() {
            groups.extend(name.into_iter().flat_map(|n| self.memberships(n)));
        }
        for group in further {
            groups.push(self.gid(group)?);
        }
        if groups.len() > GROUPS {
            return Err(UserError::TooManyGroups);
        }
        Ok(User { uid, gid, groups: without_repeats(&groups) })
    }

    fn gid(&self, group: &str) -> Result<u32, UserError> {
        match number(group)? {
            Some(gid) => Ok(gid),
            None => self
                .group_lines()
                .find(|e| e.name == group)
                .map(|e| e.gid)
                .ok_or_else(|| UserError::NoGroup(group.to_owned())),
        }
    }

    fn memberships(&self, user: &str) -> Vec<u32> {
        let member = |e: &GroupLine<'_>| e.members.split(',').any(|m| m.trim() == user);
        self.group_lines().filter(member).map(|e| e.gid).collect()
    }

    fn passwd_lines(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(PasswdLine { name, uid, gid })
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some(GroupLine { name, gid, members: fields.next().unwrap_or("") })
        })
    }
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// A number if the text is one, none if it is a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    match text.parse::<i64>() {
        Ok(n) => u32::try_from(n)
            .ok()
            .filter(|n| i32::try_from(*n).is_ok())
            .map(Some)
            .ok_or(UserError::Range),
        Err(_) => Ok(None),
    }
}

fn without_repeats(groups: &[u32]) -> Vec<u32> {
    let mut seen = Vec::with_capacity(groups.len());
    for group in groups {
        if !seen.contains(group) {
            seen.push(*group);
        }
    }
    seen
}

fn read_below(root: &Path, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let dir = rustix::fs::openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(&dir, name, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# note\nbroken\n\
                     app:x:1000:1001:App:/home/app:/bin/sh\nsecond:x:1000:7::/:\n"
                .into(),
            group: "root:x:0:\nwheel:x:10:root,app\naudio:x:29:app\napp:x:1001:\n".into(),
        }
    }

    fn resolve(spec: &str, further: &[&str]) -> Result<(u32, u32, Vec<u32>), UserError> {
        let further: Vec<_> = further.iter().map(|f| (*f).to_owned()).collect();
        accounts().resolve(spec, &further).map(|u| (u.uid, u.gid, u.groups))
    }

    #[test]
    fn users_by_name_and_number() {
        assert_eq!(resolve("", &[]), Ok((0, 0, vec![0, 10])));
        assert_eq!(resolve("app", &[]), Ok((1000, 1001, vec![1001, 10, 29])));
        assert_eq!(resolve("1000", &[]), Ok((1000, 1001, vec![1001, 10, 29])));
        assert_eq!(resolve("4711", &[]), Ok((4711, 0, vec![0])));
        assert_eq!(resolve("4711:4712", &[]), Ok((4711, 4712, vec![4712])));
        assert_eq!(resolve("app:audio", &[]), Ok((1000, 29, vec![29])));
        assert_eq!(resolve(":audio", &[]), Ok((0, 29, vec![29])));
        assert_eq!(resolve("4711", &["audio", "29", "5"]), Ok((4711, 0, vec![0, 29, 5])));
    }

    #[test]
    fn unknown_names_are_named() {
        assert_eq!(
            resolve("ghost", &[]).unwrap_err().to_string(),
            "unable to find user ghost: no matching entries in passwd file"
        );
        assert_eq!(
            resolve("app:ghosts", &[]).unwrap_err().to_string(),
            "unable to find group ghosts: no matching entries in group file"
        );
        assert_eq!(resolve("app", &["ghosts"]), Err(UserError::NoGroup("ghosts".into())));
        assert_eq!(resolve("2147483648", &[]), Err(UserError::Range));
        assert_eq!(resolve("-1", &[]), Err(UserError::Range));
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(dir.path().join("outside"), "evil:x:666:666::/:\n").unwrap();
        symlink("../../outside", root.join("etc/passwd")).unwrap();
        symlink("/real/group", root.join("etc/group")).unwrap();
        fs::write(root.join("real/group"), "inside:x:5:\n").unwrap();
        let accounts = Accounts::read(&root);
        assert_eq!(accounts.passwd, "");
        assert_eq!(accounts.resolve("7:inside", &[]).unwrap().gid, 5);
        assert!(matches!(
            Accounts::read(&dir.path().join("none")).resolve("app", &[]),
            Err(UserError::NoUser(_))
        ));
    }
}
