//! Services of probes on an engine, as the rows need them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skep_integration::wait_until;

use crate::client::{Client, request};
use crate::clock::now_ns;
use crate::engine::{Engine, Kind};

/// Longest wait for tasks to come or go.
pub(crate) const TASKS: Duration = Duration::from_secs(180);
/// Pause between two looks at what a task left.
const LOOK: Duration = Duration::from_millis(1);

/// The body of a secret's creation.
pub(crate) fn secret_body(name: &str, payload: &[u8]) -> Value {
    json!({"Name": name, "Labels": {}, "Data": STANDARD.encode(payload)})
}

/// Makes a secret; returns a grant of it.
pub(crate) fn secret(client: &mut Client, name: &str, payload: &[u8]) -> Result<Value> {
    let made = client.post("/secrets/create", &secret_body(name, payload))?;
    let file = json!({"Name": name, "UID": "0", "GID": "0", "Mode": 0o444});
    Ok(json!({"SecretID": made["ID"], "SecretName": name, "File": file}))
}

/// Several of them.
pub(crate) fn secrets(client: &mut Client, base: &str, count: usize) -> Result<Vec<Value>> {
    (0..count).map(|n| secret(client, &format!("{base}-{n}"), &[b'x'; 64])).collect()
}

/// Removes the secrets of these grants.
pub(crate) fn remove_secrets(client: &mut Client, grants: &[Value]) -> Result<()> {
    for grant in grants {
        let id = grant["SecretID"].as_str().unwrap_or_default();
        client.call("DELETE", &format!("/secrets/{id}"), None)?;
    }
    Ok(())
}

/// A service of probes.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    engine: &'a Engine,
    pub(crate) client: Client,
    pub(crate) id: String,
    stamps: PathBuf,
}

/// What a service is made of.
#[derive(Debug, Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    /// The probe's arguments; `{out}` stands for the file it writes to.
    pub(crate) args: &'a [&'a str],
    pub(crate) grants: &'a [Value],
    pub(crate) replicas: usize,
    pub(crate) host_network: bool,
    pub(crate) order: &'a str,
    /// What a node must be to run it.
    pub(crate) constraint: Option<&'a str>,
}

impl<'a> Plan<'a> {
    /// One task that stamps its start.
    pub(crate) fn stamp(name: &'a str, grants: &'a [Value]) -> Self {
        let args = &["stamp", "{out}"];
        let (host_network, order, constraint) = (false, "stop-first", None);
        Self { name, args, grants, replicas: 1, host_network, order, constraint }
    }

    fn spec(&self, engine: &Engine) -> Value {
        let out = format!("/stamp/{}", self.name);
        let args: Vec<String> = self.args.iter().map(|word| word.replace("{out}", &out)).collect();
        let container = json!({
            "Image": engine.image,
            "Command": ["/probe"],
            "Args": args,
            "Secrets": self.grants,
            "StopGracePeriod": 10_000_000_000_i64,
            "Mounts": [{"Type": "bind", "Source": engine.stamps(), "Target": "/stamp"}],
        });
        let restart = json!({"Condition": "any", "Delay": 100_000_000});
        let mut template = json!({"ContainerSpec": container, "RestartPolicy": restart});
        if self.host_network {
            template["Networks"] = json!([{"Target": "host"}]);
        }
        if let Some(constraint) = self.constraint {
            template["Placement"] = json!({"Constraints": [constraint]});
        }
        let update = json!({"Parallelism": 1, "Order": self.order, "Monitor": 100_000_000,
            "FailureAction": "continue"});
        json!({
            "Name": self.name,
            "TaskTemplate": template,
            "Mode": {"Replicated": {"Replicas": self.replicas}},
            "UpdateConfig": update,
        })
    }
}

impl<'a> Service<'a> {
    /// Makes it; returns it with the time its request was sent.
    pub(crate) fn create(engine: &'a Engine, plan: &Plan<'_>) -> Result<(Self, u64)> {
        let body = plan.spec(engine).to_string();
        let bytes = request("POST", "/services/create", "application/json", Some(body.as_bytes()));
        let mut client = engine.client();
        // The connection is there before the clock runs.
        client.get("/_ping").ok();
        let sent_ns = now_ns();
        let reply = client.send(&bytes)?;
        if reply.status != 201 {
            bail!("service create: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
        }
        let id = reply.json()?["ID"].as_str().context("a service without id")?.to_owned();
        let stamps = engine.stamps().join(plan.name);
        Ok((Self { engine, client, id, stamps }, sent_ns))
    }

    /// One that is there already, by name and id.
    pub(crate) fn find(engine: &'a Engine, name: &str, id: &str) -> Self {
        let (client, stamps) = (engine.client(), engine.stamps().join(name));
        Self { engine, client, id: id.to_owned(), stamps }
    }

    /// Changes its spec; returns when the request was sent.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Value)) -> Result<u64> {
        let service = self.client.get(&format!("/services/{}", self.id))?;
        let mut spec = service["Spec"].clone();
        change(&mut spec);
        let path = format!("/services/{}/update?version={}", self.id, service["Version"]["Index"]);
        let sent_ns = now_ns();
        self.client.post(&path, &spec)?;
        Ok(sent_ns)
    }

    pub(crate) fn scale(&mut self, replicas: usize) -> Result<u64> {
        self.update(|spec| spec["Mode"]["Replicated"]["Replicas"] = json!(replicas))
    }

    /// What its probes wrote: the lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.stamps).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits for `count` lines; returns them.
    pub(crate) fn await_lines(&self, count: usize) -> Result<Vec<String>> {
        let end = now_ns() + u64::try_from(TASKS.as_nanos())?;
        while now_ns() < end {
            let lines = self.lines();
            if lines.len() >= count {
                return Ok(lines);
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} of {count} probes answered\n{}", self.lines().len(), self.engine.log_tail())
    }

    /// The latest start among its probes' stamps, which all must have seen their secrets.
    pub(crate) fn await_stamps(&self, count: usize, secrets: usize) -> Result<Vec<u64>> {
        let mut began = Vec::new();
        for line in self.await_lines(count)? {
            let fields: Vec<u64> = line.split(' ').filter_map(|text| text.parse().ok()).collect();
            let [start, _, seen] = fields.as_slice() else { bail!("a stamp of {line:?}") };
            if usize::try_from(*seen)? != secrets {
                bail!("a task saw {seen} of {secrets} secrets");
            }
            began.push(*start);
        }
        Ok(began)
    }

    /// Ids of the tasks that run and are to run.
    pub(crate) fn running(&mut self) -> Result<Vec<String>> {
        let running = self.tasks()?.into_iter();
        Ok(running.filter_map(|task| task["ID"].as_str().map(str::to_owned)).collect())
    }

    /// How many of them are on one node.
    pub(crate) fn running_on(&mut self, node: &str) -> Result<usize> {
        Ok(self.tasks()?.iter().filter(|task| task["NodeID"] == node).count())
    }

    fn tasks(&mut self) -> Result<Vec<Value>> {
        let mut tasks = self.client.list("/tasks?", "service", &self.id)?;
        tasks.retain(|task| {
            task["Status"]["State"] == "running" && task["DesiredState"] == "running"
        });
        Ok(tasks)
    }

    pub(crate) fn await_running(&mut self, count: usize) -> Result<Vec<String>> {
        wait_until("running tasks", TASKS, || {
            let running = self.running()?;
            Ok((running.len() == count).then_some(running))
        })
    }

    /// Its containers, ended ones too.
    pub(crate) fn containers(&mut self) -> Result<Vec<Value>> {
        let label = format!("com.docker.swarm.service.id={}", self.id);
        self.client.list("/containers/json?all=1&", "label", &label)
    }

    /// Removes it and waits until nothing of it is left.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.client.call("DELETE", &format!("/services/{}", self.id), None)?;
        wait_until("the end of a service", TASKS, || {
            Ok(self.containers()?.is_empty().then_some(()))
        })?;
        fs::remove_file(&self.stamps).ok();
        if self.engine.kind == Kind::Docker {
            // It goes on clearing up for a moment, which is not the next round's to pay for.
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(())
    }
}
