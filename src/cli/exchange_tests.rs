//! Commands against a daemon that answers from a script, on a real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use super::*;

/// A request as it came: method and target, and the body.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// What the daemon answers to a request line that begins so.
type Script = &'static [(&'static str, u16, &'static str)];

struct Daemon {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    seen: Seen,
}

impl Daemon {
    fn start(script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("d.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Seen::default();
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), seen) = (stream, Arc::clone(&kept)) else { break };
                std::thread::spawn(move || serve(stream, script, &seen));
            }
        });
        Self { _directory: directory, socket, seen }
    }

    fn run(&self, line: &[&str]) -> Result<u8, CliError> {
        let host = self.socket.to_str().unwrap().to_owned();
        let line = line.iter().map(|word| (*word).to_owned());
        let words: Vec<String> = ["-H".to_owned(), host].into_iter().chain(line).collect();
        match read(&words) {
            Ok(Cli::Client(call)) => match call.command.action {
                Action::Client(act) => act(&call),
                other => panic!("{other:?}"),
            },
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
    }

    fn body(&self, start: &str) -> serde_json::Value {
        let seen = self.seen.lock().unwrap();
        let (_, body) = seen.iter().find(|(line, _)| line.starts_with(start)).unwrap();
        serde_json::from_str(body).unwrap()
    }
}

fn serve(stream: UnixStream, script: Script, seen: &Seen) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            match header.trim_end().to_lowercase().split_once(": ") {
                Some(("content-length", text)) => length = text.parse().ok()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if target == "/_ping" {
            writer
                .write_all(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 0\r\n\r\n")
                .ok()?;
            continue;
        }
        let asked = format!("{method} {}", target.strip_prefix("/v1.41").unwrap_or(target));
        seen.lock().ok()?.push((asked.clone(), String::from_utf8(body).ok()?));
        let (_, status, text) = script.iter().find(|(start, ..)| asked.starts_with(start))?;
        if *status == 101 {
            let head = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
            writer.write_all(head.as_bytes()).ok()?;
            // The command's output comes once its input has ended.
            let mut input = Vec::new();
            reader.read_to_end(&mut input).ok()?;
            writer.write_all(&[1, 0, 0, 0, 0, 0, 0, 4]).ok()?;
            return writer.write_all(text.as_bytes()).ok();
        }
        // Answers to requests with secrets close their connection.
        let close = if method == "POST" { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status} X\r\n{close}Content-Length: {}\r\n\r\n", text.len());
        writer.write_all((head + text).as_bytes()).ok()?;
        if !close.is_empty() {
            return None;
        }
    }
}

#[test]
fn a_secret_goes_out_in_one_request() {
    let daemon = Daemon::start(&[("POST /secrets/create", 201, r#"{"ID":"abc"}"#)]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"a\0b\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(daemon.run(&["secret", "create", "-l", "env=prod", "x", path]).unwrap(), 0);
    assert_eq!(
        daemon.body("POST /secrets/create").to_string(),
        r#"{"Name":"x","Labels":{"env":"prod"},"Data":"YQBiCg=="}"#
    );
    let empty = tempfile::NamedTempFile::new().unwrap();
    let path = empty.path().to_str().unwrap();
    let why = daemon.run(&["secret", "create", "x", path]).unwrap_err();
    assert_eq!(why.to_string(), format!("error reading from {path}: data is empty"));
    let why = daemon.run(&["secret", "create", "x"]).unwrap_err();
    assert_eq!(why.to_string(), "secret file is required");
    assert_eq!(daemon.seen().len(), 1);
}

#[test]
fn refusals_are_told_in_the_daemons_words() {
    let daemon = Daemon::start(&[
        ("DELETE /secrets/used", 400, r#"{"message":"in use by the following service: redis\n"}"#),
        ("DELETE /secrets/gone", 404, r#"{"message":"secret gone not found"}"#),
        ("DELETE /secrets/fine", 204, ""),
    ]);
    let why = daemon.run(&["secret", "rm", "used", "fine", "gone"]).unwrap_err();
    assert_eq!(
        why.to_string(),
        "Error response from daemon: in use by the following service: redis\n\
         Error response from daemon: secret gone not found"
    );
    assert_eq!(daemon.seen().len(), 3);
}

const SECRETS: &str = r#"[{"ID":"s2","Spec":{"Name":"db_pass_2"}},
    {"ID":"s1","Spec":{"Name":"db_pass"}}]"#;

#[test]
fn a_service_is_created_as_docker_creates_it() {
    let daemon = Daemon::start(&[
        ("GET /secrets", 200, SECRETS),
        (
            "GET /distribution/busybox/json",
            200,
            r#"{"Descriptor":{"digest":"sha256:d"},
            "Platforms":[{"architecture":"amd64","os":"linux"}]}"#,
        ),
        ("POST /services/create", 201, r#"{"ID":"abc","Warnings":null}"#),
    ]);
    let line = &[
        "service",
        "create",
        "-d",
        "--name",
        "app",
        "--secret",
        "source=db_pass,target=password,uid=2000,mode=0400",
        "--limit-memory",
        "64M",
        "--restart-delay",
        "1s",
        "-e",
        "A=b",
        "busybox",
        "sleep",
        "--help",
    ];
    assert_eq!(daemon.run(line).unwrap(), 0);
    let seen = daemon.seen();
    let filters = "GET /secrets?filters=%7B%22name%22%3A%7B%22db_pass%22%3Atrue%7D%7D";
    assert_eq!(seen, [filters, "GET /distribution/busybox/json", "POST /services/create"]);
    let spec = daemon.body("POST /services/create");
    let container = &spec["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Image"], "busybox:latest@sha256:d");
    assert_eq!(container["Args"], serde_json::json!(["sleep", "--help"]));
    assert_eq!(
        container["Secrets"].to_string(),
        r#"[{"File":{"Name":"password","UID":"2000","GID":"0","Mode":256},"SecretID":"s1","SecretName":"db_pass"}]"#
    );
    assert_eq!(
        spec["TaskTemplate"]["RestartPolicy"],
        serde_json::json!({"Condition": "any", "Delay": 1_000_000_000, "MaxAttempts": 0})
    );
    assert_eq!(spec["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"], 67_108_864);
    let why = daemon.run(&["service", "create", "--secret", "db", "x"]).unwrap_err();
    assert_eq!(why.to_string(), "secret not found: db");
    let why = daemon.run(&["service", "create", "--secret", "a", "--secret", "a", "x"]);
    assert_eq!(why.unwrap_err().to_string(), "duplicate secret target for a not allowed");
}

#[test]
fn an_update_sends_the_whole_spec_back() {
    let daemon = Daemon::start(&[
        ("GET /secrets", 200, SECRETS),
        (
            "GET /services/app",
            200,
            r#"{"ID":"abc","Version":{"Index":7},"Spec":{"Name":"app",
            "TaskTemplate":{"ContainerSpec":{"Image":"busybox","Unknown":1,"Secrets":[{"File":
            {"Name":"password"},"SecretID":"s1","SecretName":"db_pass"}]},"ForceUpdate":2},
            "Mode":{"Replicated":{"Replicas":3}}}}"#,
        ),
        ("POST /services/abc/update", 200, r#"{"Warnings":null}"#),
    ]);
    let line = &[
        "service",
        "update",
        "-d",
        "--secret-rm",
        "db_pass",
        "--secret-add",
        "source=db_pass_2,target=password",
        "--force",
        "app",
    ];
    assert_eq!(daemon.run(line).unwrap(), 0);
    assert_eq!(
        daemon.seen().last().unwrap(),
        "POST /services/abc/update?registryAuthFrom=spec&version=7"
    );
    let spec = daemon.body("POST /services/abc/update");
    let container = &spec["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Unknown"], 1);
    assert_eq!(container["Secrets"].as_array().unwrap().len(), 1);
    assert_eq!(container["Secrets"][0]["SecretID"], "s2");
    assert_eq!(container["Secrets"][0]["File"]["Name"], "password");
    assert_eq!(spec["TaskTemplate"]["ForceUpdate"], 3);
    assert_eq!(spec["Mode"]["Replicated"]["Replicas"], 3);
}

#[test]
fn exec_ends_with_the_commands_exit_code() {
    let daemon = Daemon::start(&[
        ("GET /containers/c/json", 200, "{}"),
        ("POST /containers/c/exec", 201, r#"{"Id":"e"}"#),
        ("POST /exec/e/start", 101, "out\n"),
        ("GET /exec/e/json", 200, r#"{"Running":false,"ExitCode":7}"#),
        ("GET /containers/nosuch", 404, r#"{"message":"No such container: nosuch"}"#),
    ]);
    assert_eq!(daemon.run(&["exec", "-u", "5", "c", "sh", "-c", "exit 7"]).unwrap(), 7);
    let body = daemon.body("POST /containers/c/exec");
    assert_eq!((body["User"].as_str(), &body["Cmd"][2]), (Some("5"), &"exit 7".into()));
    assert!(daemon.run(&["exec", "nosuch", "true"]).unwrap_err().is_not_found());
}

#[test]
fn a_join_sends_what_docker_sends_and_asks_what_it_became() {
    let daemon = Daemon::start(&[
        ("POST /swarm/join", 200, ""),
        ("GET /info", 200, r#"{"Swarm":{"ControlAvailable":false}}"#),
    ]);
    let line = &["swarm", "join", "--token", "SWMTKN-1-a-b", "--availability", "Drain", "m:2377"];
    assert_eq!(daemon.run(line).unwrap(), 0);
    assert_eq!(
        daemon.body("POST /swarm/join").to_string(),
        r#"{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"","DataPathAddr":"","RemoteAddrs":["m:2377"],"JoinToken":"SWMTKN-1-a-b","Availability":"drain"}"#
    );
    let why = daemon.run(&["swarm", "join", "--availability", "x", "m:2377"]).unwrap_err();
    assert!(why.to_string().starts_with("invalid availability \"x\", only active, pause and"));
    assert_eq!(daemon.seen(), ["POST /swarm/join", "GET /info"]);
}

#[test]
fn only_a_locked_node_is_asked_to_unlock() {
    for (state, told) in [
        ("inactive", "Error: This node is not part of a swarm"),
        ("active", "Error: swarm is not locked"),
        ("pending", "Error: swarm is not locked"),
    ] {
        let script: Script = match state {
            "inactive" => &[("GET /info", 200, r#"{"Swarm":{"LocalNodeState":"inactive"}}"#)],
            "active" => &[("GET /info", 200, r#"{"Swarm":{"LocalNodeState":"active"}}"#)],
            _ => &[("GET /info", 200, r#"{"Swarm":{"LocalNodeState":"pending"}}"#)],
        };
        let daemon = Daemon::start(script);
        assert_eq!(daemon.run(&["swarm", "unlock"]).unwrap_err().to_string(), told);
        assert_eq!(daemon.seen(), ["GET /info"]);
    }
}

const LOCKING: &str = r#"{"Version":{"Index":4},"Spec":{"CAConfig":{"NodeCertExpiry":5},
    "EncryptionConfig":{"AutoLockManagers":true}},"TLSInfo":{"TrustRoot":"PEM\n"}}"#;

#[test]
fn rotations_name_what_rotates() {
    let daemon = Daemon::start(&[
        ("GET /swarm/unlockkey", 200, r#"{"UnlockKey":"SWMKEY-1-k"}"#),
        ("GET /swarm", 200, LOCKING),
        ("POST /swarm/update", 200, ""),
        ("GET /nodes", 200, r#"[{"Description":{"TLSInfo":{"TrustRoot":"PEM\n"}}}]"#),
    ]);
    assert_eq!(daemon.run(&["swarm", "unlock-key", "--rotate", "-q"]).unwrap(), 0);
    assert_eq!(daemon.run(&["swarm", "join-token", "--rotate", "-q", "manager"]).unwrap(), 0);
    let line = &["swarm", "ca", "--rotate", "-q", "--cert-expiry", "2h"];
    assert_eq!(daemon.run(line).unwrap(), 0);
    let seen = daemon.seen();
    let sent: Vec<_> = seen.iter().filter(|line| line.starts_with("POST")).collect();
    let update = |manager, unlock| {
        format!(
            "POST /swarm/update?rotateManagerToken={manager}&rotateManagerUnlockKey={unlock}\
             &rotateWorkerToken=false&version=4"
        )
    };
    assert_eq!(sent, [&update(false, true), &update(true, false), &update(false, false)]);
    let bodies = daemon.seen.lock().unwrap();
    let (_, last) = bodies.iter().rfind(|(line, _)| line.starts_with("POST")).unwrap();
    let spec: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(spec["CAConfig"].to_string(), r#"{"NodeCertExpiry":7200000000000,"ForceRotate":1}"#);
    drop(bodies);
    let why = daemon.run(&["swarm", "ca", "--cert-expiry", "2h"]).unwrap_err();
    assert!(why.to_string().contains("requires the `--rotate` flag"), "{why}");
}

#[test]
fn an_unlock_key_that_is_not_to_be_had_is_told() {
    let daemon = Daemon::start(&[("GET /swarm/unlockkey", 503, r#"{"message":"no manager"}"#)]);
    assert_eq!(
        daemon.run(&["swarm", "unlock-key"]).unwrap_err().to_string(),
        "could not fetch unlock key: Error response from daemon: no manager"
    );
    let daemon = Daemon::start(&[("GET /swarm/unlockkey", 200, r#"{"UnlockKey":""}"#)]);
    let why = daemon.run(&["swarm", "unlock-key"]).unwrap_err();
    assert_eq!(why.to_string(), "no unlock key is set");
}

#[test]
fn roles_change_one_after_the_other_until_one_fails() {
    let daemon = Daemon::start(&[
        (
            "GET /nodes/boss",
            200,
            r#"{"ID":"n1","Version":{"Index":3},"Spec":{"Role":"manager","Labels":{"a":"b"}}}"#,
        ),
        ("GET /nodes/hand", 200, r#"{"ID":"n2","Version":{"Index":7},"Spec":{"Role":"worker"}}"#),
        (
            "POST /nodes/n1/update",
            400,
            r#"{"message":"attempting to demote the last manager of the swarm"}"#,
        ),
        ("POST /nodes/n2/update", 200, ""),
    ]);
    assert_eq!(daemon.run(&["node", "promote", "boss", "hand"]).unwrap(), 0);
    assert_eq!(daemon.seen().last().unwrap(), "POST /nodes/n2/update?version=7");
    assert_eq!(daemon.body("POST /nodes/n2").to_string(), r#"{"Role":"manager"}"#);
    let why = daemon.run(&["node", "demote", "boss", "hand"]).unwrap_err();
    assert!(why.to_string().ends_with("demote the last manager of the swarm"), "{why}");
    assert_eq!(
        daemon.body("POST /nodes/n1").to_string(),
        r#"{"Role":"worker","Labels":{"a":"b"}}"#
    );
    assert_eq!(daemon.seen().last().unwrap(), "POST /nodes/n1/update?version=3");
}

#[test]
fn nodes_are_removed_and_failures_told_at_the_end() {
    let daemon = Daemon::start(&[
        ("DELETE /nodes/up", 400, r#"{"message":"node up is not down and can't be removed"}"#),
        ("DELETE /nodes/gone", 200, ""),
        (
            "GET /skep/v1/nodes/gone/holdings",
            200,
            r#"{"Hostname":"n4","Unreachable":[{"Kind":"secret","Name":"db","Versions":[2]}]}"#,
        ),
    ]);
    let why = daemon.run(&["node", "rm", "up", "gone"]).unwrap_err();
    assert_eq!(
        why.to_string(),
        "Error response from daemon: node up is not down and can't be removed"
    );
    assert_eq!(daemon.run(&["node", "remove", "--force", "gone"]).unwrap(), 0);
    assert_eq!(
        daemon.seen(),
        [
            "GET /skep/v1/nodes/up/holdings",
            "DELETE /nodes/up",
            "GET /skep/v1/nodes/gone/holdings",
            "DELETE /nodes/gone",
            "GET /skep/v1/nodes/gone/holdings",
            "DELETE /nodes/gone?force=1"
        ]
    );
}

#[test]
fn a_missing_daemon_is_told_with_its_socket_and_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let words = ["-H", socket.to_str().unwrap(), "ps"].map(str::to_owned);
    let Ok(Cli::Client(call)) = read(&words) else { panic!("not a call") };
    let Action::Client(act) = call.command.action else { panic!("not a client") };
    let text = act(&call).unwrap_err().to_string();
    assert!(text.contains(socket.to_str().unwrap()), "{text}");
    assert!(text.contains("Is the skep daemon running?") && text.contains("skep up"), "{text}");
}

#[test]
fn a_rotation_of_the_key_ends_by_what_the_last_line_says() {
    const DONE: &str = "{\"Key\":2,\"Turned\":true,\"Done\":0,\"Total\":1,\"State\":\"sealing\"}\n\
        {\"Key\":2,\"Turned\":true,\"Done\":1,\"Total\":1,\"State\":\"done\",\"Managers\":\
        [{\"ID\":\"a\",\"Hostname\":\"m1\",\"State\":\"purged\"}]}\n";
    const BEHIND: &str = "{\"Key\":3,\"Turned\":true,\"Done\":1,\"Total\":1,\"State\":\"behind\",\
        \"Managers\":[{\"ID\":\"a\",\"Hostname\":\"m2\",\"State\":\"unreachable\"}]}\n";
    let daemon = Daemon::start(&[
        ("POST /skep/v1/swarm/rotate-key?force=1", 200, BEHIND),
        ("POST /skep/v1/swarm/rotate-key", 200, DONE),
    ]);
    assert_eq!(daemon.run(&["swarm", "rotate-key"]).unwrap(), 0);
    assert_eq!(daemon.run(&["swarm", "rotate-key", "--quiet", "--detach"]).unwrap(), 0);
    let why = daemon.run(&["swarm", "rotate-key", "--force"]).unwrap_err().to_string();
    assert!(why.contains("may still be on the disk of m2 (unreachable)"), "{why}");
    let seen = daemon.seen();
    assert_eq!(seen.last().unwrap(), "POST /skep/v1/swarm/rotate-key?force=1");
    assert_eq!(seen.get(1).unwrap(), "POST /skep/v1/swarm/rotate-key?detach=1");
}

#[test]
fn a_revocation_that_is_not_in_force_everywhere_is_told_by_the_exit_code() {
    macro_rules! answer {
        ($late:literal, $unreachable:literal) => {
            concat!(
                r#"{"Name":"db","Version":1,"Services":["web"],"Tasks":[],"Late":["#,
                $late,
                r#"],"Unreachable":["#,
                $unreachable,
                r#"],"AbsentManagers":[]}"#
            )
        };
    }
    const PATH: &str = "POST /skep/v1/secrets/db/revoke";
    let scripts: [(Script, u8); 3] = [
        (&[(PATH, 200, answer!("", ""))], 0),
        (&[(PATH, 200, answer!(r#"{"Task":"t1","Versions":[1]}"#, ""))], 2),
        (&[(PATH, 200, answer!("", r#"{"Task":"t1","Versions":[1]}"#))], 2),
    ];
    for (script, code) in scripts {
        let daemon = Daemon::start(script);
        let told = daemon.run(&["secret", "revoke", "--service", "web", "db"]).unwrap();
        assert_eq!(told, code, "{script:?}");
        let sent = daemon.body(PATH);
        assert_eq!(sent, serde_json::json!({"Service": "web", "Task": null}));
    }
}

#[test]
fn an_update_that_waits_tells_which_tasks_do_not_have_it() {
    const UPDATED: (&str, u16, &str) =
        ("POST /skep/v1/secrets/update", 200, r#"[{"Name":"db","Version":2}]"#);
    const HOLDERS: &str = "GET /skep/v1/secrets/db/holders";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "x").unwrap();
    let path = file.path().to_str().unwrap();
    let scripts: [(Script, u8); 2] = [
        (&[UPDATED, (HOLDERS, 200, r#"{"Tasks":[{"Task":"t","Complies":true}]}"#)], 0),
        (&[UPDATED, (HOLDERS, 200, r#"{"Tasks":[{"Task":"t","Complies":false}]}"#)], 2),
    ];
    for (script, code) in scripts {
        let daemon = Daemon::start(script);
        let told = daemon.run(&["secret", "update", "--wait", "--timeout", "0", "db", path]);
        assert_eq!(told.unwrap(), code);
        let seen = daemon.seen();
        assert_eq!(seen[1], "GET /skep/v1/secrets/db/holders?wait_ms=0", "{seen:?}");
    }
}
