//! `skep image`, `images`, `rmi` and `tag`.

use serde_json::Value;

pub(super) use super::archive::{LOAD, SAVE};
use super::call::{Call, outln};
use super::client::{Client, Target};
use super::error::CliError;
use super::flags::{Arity, Command, Flag};
pub(super) use super::import::IMPORT;
use super::output::{FILTER, INSPECT_FORMAT, LIST_FORMAT, Layout, Row, print_list, row};
use super::{human, inspect, json};

/// `skep images`
pub(super) const IMAGES: Command =
    Command::client("images", "[OPTIONS] [REPOSITORY[:TAG]]", "List images", list)
        .flags(LIST_FLAGS)
        .takes(Arity::AtMost(1))
        .aliases(&[], LIST_ALSO)
        .section("Common Commands");

/// `skep rmi`
pub(super) const RMI: Command =
    Command::client("rmi", "[OPTIONS] IMAGE [IMAGE...]", "Remove one or more images", remove)
        .flags(REMOVE_FLAGS)
        .takes(Arity::AtLeast(1))
        .aliases(&[], REMOVE_ALSO);

/// `skep tag`
pub(super) const TAG: Command = Command::client(
    "tag",
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE",
    tag,
)
.takes(Arity::Exactly(2));

/// `skep image …`
pub(super) const IMAGE: Command = Command::group(
    "image",
    "Manage images",
    &[
        IMPORT.aliases(&[], &["image import", "import"]),
        Command::client(
            "inspect",
            "[OPTIONS] IMAGE [IMAGE...]",
            "Display detailed information on one or more images",
            inspect_images,
        )
        .flags(&[INSPECT_FORMAT])
        .takes(Arity::AtLeast(1)),
        LOAD.aliases(&[], LOAD_ALSO),
        Command::client("ls", "[OPTIONS] [REPOSITORY[:TAG]]", "List images", list)
            .flags(LIST_FLAGS)
            .takes(Arity::AtMost(1))
            .aliases(&["list"], LIST_ALSO),
        Command::client("rm", "[OPTIONS] IMAGE [IMAGE...]", "Remove one or more images", remove)
            .flags(REMOVE_FLAGS)
            .takes(Arity::AtLeast(1))
            .aliases(&["remove"], REMOVE_ALSO),
        SAVE.aliases(&[], SAVE_ALSO),
        TAG.aliases(&[], &["image tag", "tag"]),
    ],
)
.section("Management Commands");

pub(super) const LOAD_ALSO: &[&str] = &["image load", "load"];
pub(super) const SAVE_ALSO: &[&str] = &["image save", "save"];
const LIST_ALSO: &[&str] = &["image ls", "image list", "images"];
const REMOVE_ALSO: &[&str] = &["image rm", "image remove", "rmi"];

const LIST_FLAGS: &[Flag] = &[
    Flag::switch("all", "Show all images (default hides intermediate images)").short('a'),
    Flag::switch("digests", "Show digests"),
    FILTER,
    LIST_FORMAT,
    Flag::switch("no-trunc", "Don't truncate output"),
    Flag::switch("quiet", "Only show image IDs").short('q'),
];

const REMOVE_FLAGS: &[Flag] = &[
    Flag::switch("force", "Force removal of the image").short('f'),
    Flag::switch("no-prune", "Do not delete untagged parents"),
];

const LAYOUT: Layout = Layout {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    quiet: "{{.ID}}",
    headers: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("VirtualSize", "SIZE"),
    ],
};

const DIGEST_LAYOUT: Layout = Layout {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    ..LAYOUT
};

fn list(call: &Call) -> Result<u8, CliError> {
    let mut filters = call.filters();
    if let Some(name) = call.matches.arg(0) {
        filters = filters.and("reference", name);
    }
    let target = Target::new(&["images", "json"]);
    let target = if call.on("all") { target.with("all", "1") } else { target };
    let answer = call.client()?.get_json(&target.filtered(&filters))?;
    let cut = !call.on("no-trunc");
    let rows: Vec<Row> =
        json::list(&answer, &[]).iter().flat_map(|image| image_rows(image, cut)).collect();
    let layout = if call.on("digests") { &DIGEST_LAYOUT } else { &LAYOUT };
    print_list(call, layout, &rows)?;
    Ok(0)
}

/// One row for each name of an image.
fn image_rows(image: &Value, cut: bool) -> Vec<Row> {
    let texts = |key: &str| -> Vec<&str> {
        json::list(image, &[key])
            .iter()
            .filter_map(Value::as_str)
            .filter(|text| !text.starts_with("<none>"))
            .collect()
    };
    let digests = texts("RepoDigests");
    let digest_of = |repository: &str| {
        let own =
            digests.iter().find_map(|one| one.split_once('@').filter(|(n, _)| *n == repository));
        own.map_or("<none>", |(_, digest)| digest)
    };
    let mut names: Vec<(&str, &str, &str)> = texts("RepoTags")
        .into_iter()
        .map(|name| {
            let (repository, tag) = split_tag(name);
            (repository, tag.unwrap_or("<none>"), digest_of(repository))
        })
        .collect();
    if names.is_empty() {
        names.extend(
            digests
                .iter()
                .filter_map(|one| one.split_once('@'))
                .map(|(name, digest)| (name, "<none>", digest)),
        );
    }
    if names.is_empty() {
        names.push(("<none>", "<none>", "<none>"));
    }
    let id = json::text(image, &["Id"]);
    let created = json::at(image, &["Created"]).and_then(Value::as_i64).unwrap_or_default();
    let at = jiff::Timestamp::from_second(created)
        .map(|at| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string())
        .unwrap_or_default();
    let size = human::size(json::number(image, &["Size"]) as f64, 3);
    names
        .into_iter()
        .map(|(repository, tag, digest)| {
            row([
                ("Repository", repository.to_owned()),
                ("Tag", tag.to_owned()),
                ("Digest", digest.to_owned()),
                ("ID", if cut { human::short_id(id).to_owned() } else { id.to_owned() }),
                ("CreatedSince", human::ago_unix(created)),
                ("CreatedAt", at.clone()),
                ("Size", size.clone()),
                ("Containers", "N/A".to_owned()),
                ("SharedSize", "N/A".to_owned()),
                ("UniqueSize", "N/A".to_owned()),
                ("VirtualSize", size.clone()),
            ])
        })
        .collect()
}

/// A name and its tag.
pub(super) fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

/// A name with the registry and the folder that are meant when none are written.
pub(super) fn full_name(name: &str) -> String {
    match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    }
}

fn inspect_images(call: &Call) -> Result<u8, CliError> {
    inspect::print(call, &mut call.client()?, |client: &mut Client, name| {
        client.get(&Target::new(&["images", name, "json"]))
    })
}

fn remove(call: &Call) -> Result<u8, CliError> {
    let mut client = call.client()?;
    let mut errors = Vec::new();
    for name in call.args() {
        let mut target = Target::new(&["images", name]);
        for (flag, parameter) in [("force", "force"), ("no-prune", "noprune")] {
            if call.on(flag) {
                target = target.with(parameter, "1");
            }
        }
        match client.delete(&target) {
            Ok(bytes) => {
                let gone: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                for one in json::list(&gone, &[]) {
                    match json::text(one, &["Deleted"]) {
                        "" => outln(&format!("Untagged: {}", json::text(one, &["Untagged"])))?,
                        id => outln(&format!("Deleted: {id}"))?,
                    }
                }
            }
            Err(why) => errors.push(why),
        }
    }
    CliError::all(errors)
}

fn tag(call: &Call) -> Result<u8, CliError> {
    let (repository, tag) = split_tag(call.arg(1));
    let target = Target::new(&["images", call.arg(0), "tag"])
        .with("repo", &full_name(repository))
        .with("tag", tag.unwrap_or("latest"));
    call.client()?.post_empty(&target)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_for_each_name() {
        let image = json!({"Id": "sha256:0123456789abcdef", "Created": 1, "Size": 4_430_000,
            "RepoTags": ["busybox:latest", "host:5000/x:1"], "RepoDigests": ["busybox@sha256:aa"]});
        let rows = image_rows(&image, true);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (&rows[0]["Repository"], &rows[0]["Tag"]),
            (&json!("busybox"), &json!("latest"))
        );
        assert_eq!((&rows[0]["ID"], &rows[0]["Size"]), (&json!("0123456789ab"), &json!("4.43MB")));
        assert_eq!(rows[0]["Digest"], "sha256:aa");
        assert_eq!((&rows[1]["Repository"], &rows[1]["Tag"]), (&json!("host:5000/x"), &json!("1")));
        assert_eq!(image_rows(&json!({"Id": "sha256:aa"}), true)[0]["Repository"], "<none>");
    }

    #[test]
    fn names_are_completed() {
        assert_eq!(full_name("x"), "docker.io/library/x");
        assert_eq!(full_name("a/b"), "docker.io/a/b");
        assert_eq!(full_name("localhost/b"), "localhost/b");
        assert_eq!(split_tag("localhost:5000/b"), ("localhost:5000/b", None));
    }
}
