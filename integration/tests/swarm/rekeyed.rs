//! The ring's key is rotated: everything is sealed anew while tasks read on, and afterwards no
//! manager has the old key, sealed to whomever.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use skep::identity::store::IdentityStore;
use skep_integration::{Cluster, ClusterOptions, Program, look};
use skep_raft::{FatalHook, Raft};

use crate::plaintext::copy_tree;
use crate::{BOUND, Scene, alone};

const MANAGERS: usize = 3;

fn three() -> ClusterOptions {
    ClusterOptions { managers: MANAGERS, ..ClusterOptions::default() }
}

/// What a manager's files hold.
struct Files {
    /// Records of log and snapshots, each with its file.
    records: Vec<(String, Vec<u8>)>,
    /// The keys of the ring in its state, each as it is sealed to every manager.
    slots: BTreeMap<u64, Vec<Vec<u8>>>,
    /// The bytes of every payload in its state.
    payloads: Vec<Vec<u8>>,
}

impl Files {
    /// Reads a copy of a manager's files by the storage key that lies beside them.
    fn of(cluster: &Cluster, at: usize) -> Result<Self> {
        let (node, copy) = (cluster.node(at), cluster.root().join(format!("files-{at}")));
        // What a copy finds is what a crash would leave.
        let is_up = node.is_up();
        if is_up {
            cluster.pause(at)?;
        }
        let copied = copy_tree(&node.data_root().join("raft"), &copy.join("raft"));
        let key = fs::copy(node.data_root().join("storage.key"), copy.join("storage.key"));
        if is_up {
            cluster.resume(at)?;
        }
        copied?;
        key?;
        let files = Self::read(&IdentityStore::new(&copy))?;
        fs::remove_dir_all(&copy)?;
        Ok(files)
    }

    fn read(store: &IdentityStore) -> Result<Self> {
        let config = || -> Result<skep_raft::Config> {
            Ok(skep_raft::Config {
                dir: store.raft_dir(),
                storage_key: store.load_storage_key()?,
                raft_id: 1,
                addr: String::new(),
                format: skep_core::format::FORMAT,
                on_fatal: FatalHook::exit(),
            })
        };
        let mut records = Vec::new();
        Raft::each_remnant(&config()?, &mut |file, record| {
            records.push((file.to_owned(), record.to_vec()));
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (slots, payloads) = runtime.block_on(async {
            Raft::recover_alone(&config()?).await?;
            let raft = Raft::start(config()?, Arc::new(skep::clock::now)).await?;
            let found = raft.view(|state| {
                let keys = state.cluster().into_iter().flat_map(|cluster| &cluster.ring.keys);
                let sealed = keys.map(|key| {
                    let slots = key.slots.values().map(|slot| slot.sealed.clone());
                    (key.version, slots.collect())
                });
                let versions = state.materials().flat_map(|material| {
                    material.versions.iter().map(|version| (material.id, version.number))
                });
                let payloads = versions
                    .filter_map(|(id, number)| Some(state.payload(&id, number)?.bytes.clone()));
                (sealed.collect(), payloads.collect())
            });
            raft.shutdown().await;
            anyhow::Ok(found)
        })?;
        Ok(Self { records, slots, payloads })
    }

    /// The files that hold these bytes.
    fn holding(&self, bytes: &[u8]) -> Vec<&str> {
        let finder = memchr::memmem::Finder::new(bytes);
        let holding = self.records.iter().filter(|(_, record)| finder.find(record).is_some());
        holding.map(|(file, _)| file.as_str()).collect()
    }

    fn versions(&self) -> Vec<u64> {
        self.slots.keys().copied().collect()
    }
}

/// What the old key was, as managers keep it, and what it sealed.
struct Old {
    slots: Vec<Vec<u8>>,
    payloads: Vec<Vec<u8>>,
}

impl Old {
    /// Reads it from a manager, and finds all of it on each: a search that finds nothing later
    /// proves something.
    fn of(cluster: &Cluster, key: u64) -> Result<Self> {
        let Files { mut slots, payloads, .. } = Files::of(cluster, 0)?;
        let slots = slots.remove(&key).with_context(|| format!("the ring has no key {key}"))?;
        ensure!(slots.len() == MANAGERS, "{} slots", slots.len());
        let old = Self { slots, payloads };
        for at in cluster.managers() {
            let files = Files::of(cluster, at)?;
            for bytes in old.bytes() {
                ensure!(!files.holding(bytes).is_empty(), "manager {at} has it, and is not found");
            }
        }
        Ok(old)
    }

    fn bytes(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.slots.iter().chain(&self.payloads)
    }

    /// Looks for it in the state, the log and the snapshots of a manager, where `key` must be.
    fn is_gone_from(&self, cluster: &Cluster, at: usize, key: u64) -> Result<()> {
        let files = Files::of(cluster, at)?;
        ensure!(files.versions() == [key], "manager {at} has the keys {:?}", files.versions());
        for bytes in self.bytes() {
            let holding = files.holding(bytes);
            ensure!(
                holding.is_empty(),
                "manager {at} has the old key, or what it sealed: {holding:?}"
            );
        }
        for slot in files.slots.values().flatten() {
            ensure!(!files.holding(slot).is_empty(), "manager {at} lacks the new key on its disk");
        }
        Ok(())
    }
}

#[test]
fn after_a_rotation_no_manager_has_the_old_key() -> Result<()> {
    const SECRETS: usize = 20;
    const VERSIONS: usize = 3;
    alone(three(), |cluster| {
        let scene = Scene::new(cluster, Program::Skep, "rekeyed");
        let skep = cluster.node(1).skep();
        let mut names = Vec::new();
        for n in 0..SECRETS {
            let name = scene.bench.secret(&format!("key{n}"), format!("{n} version 1"))?;
            for version in 2..=VERSIONS {
                let text = format!("{n} version {version}");
                skep.ok_with(&["secret", "update", &name, "-"], text.as_bytes())?;
            }
            names.push(name);
        }
        let grants: Vec<&str> = names.iter().flat_map(|name| ["--secret", name]).collect();
        let mut placed = Vec::new();
        for at in cluster.managers() {
            let (_, tasks) = scene.sleeper_on(at, &format!("reader{at}"), &grants)?;
            placed.extend(tasks);
        }
        let seen = placed.iter().map(|task| look(cluster.node(task.node), &task.container));
        let seen = seen.collect::<Result<Vec<_>>>()?;
        let old = Old::of(cluster, 1)?;
        ensure!(old.payloads.len() == SECRETS * VERSIONS, "{} payloads", old.payloads.len());
        cluster.await_ready(MANAGERS)?;

        let said = skep.ok(&["swarm", "rotate-key"])?;
        let total = SECRETS * VERSIONS;
        ensure!(said.contains(&format!("Ring key 2 seals all {total} versions")), "{said}");
        ensure!(said.contains("gone from the state, log and snapshots of every manager"), "{said}");
        for at in cluster.managers() {
            old.is_gone_from(cluster, at, 2)?;
        }
        cluster.await_ready(MANAGERS)?;
        for (task, seen) in placed.iter().zip(&seen) {
            ensure!(!seen.is_dead(), "the rotation ended a task");
            for (n, name) in names.iter().enumerate() {
                let text = scene.read(task, name)?;
                ensure!(text == format!("{n} version {VERSIONS}"), "{text}");
            }
        }
        // What the new key seals is what the old one did, and versions go on.
        let said = skep.ok(&["secret", "rollback", &names[0], "1"])?;
        ensure!(said == format!("{} {}", names[0], VERSIONS + 1), "{said}");
        let quiet = skep.ok(&["swarm", "rotate-key", "--quiet"])?;
        ensure!(quiet == "3", "{quiet}");
        Ok(())
    })
}

#[test]
fn a_rotation_ends_without_a_manager_that_is_away_and_names_it() -> Result<()> {
    const AWAY: usize = 2;
    alone(three(), |cluster| {
        let scene = Scene::new(cluster, Program::Skep, "away");
        scene.bench.secret("only", "the bytes")?;
        let old = Old::of(cluster, 1)?;
        cluster.await_ready(MANAGERS)?;
        cluster.kill(AWAY)?;
        let skep = cluster.node(0).skep();
        let said = skep.run(&["swarm", "rotate-key"])?;
        let name = skep_integration::name_of(AWAY);
        ensure!(said.code == 1 && said.stderr.contains("ring key 2 seals all 1"), "{said:?}");
        ensure!(said.stderr.contains(&format!("{name} (unreachable)")), "{said:?}");
        for at in [0, 1] {
            old.is_gone_from(cluster, at, 2)?;
        }
        // It still has what it had, until it is back.
        let files = Files::of(cluster, AWAY)?;
        ensure!(old.bytes().all(|bytes| !files.holding(bytes).is_empty()), "where did it go?");
        cluster.restart(AWAY)?;
        cluster.await_ready(MANAGERS)?;
        skep.ok(&["swarm", "rotate-key"])?;
        for at in cluster.managers() {
            old.is_gone_from(cluster, at, 3)?;
        }
        Ok(())
    })
}

/// The manager that seals is killed when some payloads are sealed anew and others are not.
#[test]
fn a_rotation_goes_on_when_the_leader_is_killed_in_the_midst() -> Result<()> {
    const SECRETS: usize = 250;
    const SECRET_BYTES: usize = 400_000;
    alone(three(), |cluster| {
        let scene = Scene::new(cluster, Program::Skep, "midst");
        for n in 0..SECRETS {
            scene
                .bench
                .secret(&format!("large{n}"), vec![b'a' + u8::try_from(n % 26)?; SECRET_BYTES])?;
        }
        let leader = cluster.leader()?;
        let watching = (leader + 1) % MANAGERS;
        let mut command = cluster.node(watching).skep().command(&["swarm", "rotate-key"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let begun = loop {
            let line = lines.next().context("the rotation ended before it was seen")??;
            let Some(rest) = line.strip_prefix("sealed anew: ") else { continue };
            let count = rest.split('/').next().and_then(|text| text.split_whitespace().last());
            let done: usize = count.context("no count")?.parse()?;
            if done > 0 {
                break done;
            }
        };
        ensure!(begun < SECRETS, "the rotation was over before anybody could be killed");
        cluster.kill(leader)?;
        let mut said = String::new();
        for line in lines {
            said += &(line? + "\n");
        }
        let mut errors = String::new();
        child.stderr.take().context("no errors")?.read_to_string(&mut errors)?;
        let status = child.wait()?;
        ensure!(said.contains(&format!("{SECRETS}/{SECRETS} versions")), "{said}{errors}");
        let name = skep_integration::name_of(leader);
        ensure!(status.code() == Some(1), "{status}: {said}{errors}");
        ensure!(errors.contains(&format!("{name} (unreachable)")), "{errors}");
        cluster.restart(leader)?;
        cluster.await_ready_at(watching, MANAGERS)?;
        for at in cluster.managers() {
            let files = Files::of(cluster, at)?;
            ensure!(files.versions() == [2], "manager {at} has the keys {:?}", files.versions());
        }
        cluster.await_ready_at(watching, MANAGERS)?;
        let (_, placed) =
            scene.sleeper_on(watching, "reader", &["--secret", &scene.bench.name("large7")])?;
        let read = scene.exec(
            &placed[0],
            &["head", "-c", "3", &format!("/run/secrets/{}", scene.bench.name("large7"))],
        )?;
        ensure!(read == "hhh", "{read}");
        skep_integration::settle("every manager to purge the old key", BOUND, || {
            let said = cluster.node(watching).skep().run(&["swarm", "rotate-key", "--force"])?;
            Ok(said.code == 0)
        })
    })
}
