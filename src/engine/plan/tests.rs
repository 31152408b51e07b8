use std::path::Path;

use serde_json::Value;
use skep_core::assign::AssignedGrant;
use skep_core::id::{ENTROPY_LEN, Id};
use skep_core::model::Meta;
use skep_core::model::container::{Mount, Ulimit};
use skep_core::model::material::{MaterialKind, OnChange};
use skep_core::model::task::{ResourceNeeds, Resources, Task, TaskSpec, TaskState, TaskStatus};
use skep_core::time::Stamp;

use super::*;

pub(crate) fn image() -> Image {
    Image {
        id: format!("sha256:{}", "1".repeat(64)),
        repo_tags: vec!["busybox:latest".into()],
        repo_digests: Vec::new(),
        manifest_digest: format!("sha256:{}", "2".repeat(64)),
        manifest_bytes: 1,
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        config: ImageConfig::default(),
        created: Stamp(0),
        author: String::new(),
        comment: String::new(),
        architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.into(),
        variant: String::new(),
        os: "linux".into(),
        bytes: 0,
        diff_ids: vec![format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64))],
        history: Vec::new(),
    }
}

pub(in crate::engine) fn assignment(spec: TaskSpec) -> TaskAssignment {
    let task = Task {
        id: Id::from_entropy([1; ENTROPY_LEN]),
        meta: Meta::default(),
        service: Id::from_entropy([2; ENTROPY_LEN]),
        service_name: "web".into(),
        service_labels: Default::default(),
        slot: 1,
        node: Some(Id::from_entropy([3; ENTROPY_LEN])),
        spec: spec.into(),
        spec_version: 1,
        status: TaskStatus::default(),
        desired: TaskState::Running,
        start_after: None,
        attempts: 0,
        window_start: Stamp(0),
        running_since: None,
        started_with: Vec::new(),
    };
    TaskAssignment { task, grants: Vec::new(), revoked: Vec::new() }
}

pub(in crate::engine) fn node(data_root: &Path, run_root: &Path) -> NodeContext {
    NodeContext {
        cluster: Id::from_entropy([4; ENTROPY_LEN]),
        node: Id::from_entropy([3; ENTROPY_LEN]),
        hostname: "metal".into(),
        data_root: data_root.into(),
        run_root: run_root.into(),
        runtime: "runc".into(),
        vault: "auto".into(),
        unified_cgroups: false,
    }
}

/// A task that sleeps, as `change` makes it.
pub(crate) fn sleeping(change: impl FnOnce(&mut TaskSpec)) -> TaskSpec {
    let mut spec = TaskSpec::default();
    spec.container.args = vec!["sleep".into(), "100000".into()];
    change(&mut spec);
    spec
}

fn plan_of(change: impl FnOnce(&mut TaskSpec)) -> Result<Plan, PlanError> {
    let node = node(Path::new("/data"), Path::new("/run/skep"));
    plan(&assignment(sleeping(change)), &image(), &node)
}

fn bundle_of(change: impl FnOnce(&mut TaskSpec)) -> Value {
    serde_json::from_str(&plan_of(change).unwrap().launch.bundle).unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn on(target: &str) -> NetworkAttachment {
    NetworkAttachment { target: target.into(), ..NetworkAttachment::default() }
}

#[test]
fn a_launch_is_complete() {
    let mut assignment = assignment(sleeping(|spec| spec.container.user = "app".into()));
    assignment.grants.push(AssignedGrant {
        material: Id::from_entropy([5; ENTROPY_LEN]),
        kind: MaterialKind::Secret,
        name: "db".into(),
        version: 3,
        created: Stamp(1),
        size: 4,
        target: "db-password".into(),
        uid: 2000,
        gid: 2000,
        mode: 0o440,
        on_change: OnChange::Signal(1),
    });
    let node = node(Path::new("/data"), Path::new("/run/skep"));
    let plan = plan(&assignment, &image(), &node).unwrap();
    let (id, launch) = (assignment.task.id, plan.launch);
    assert_eq!(launch.container_id, id.container_id());
    let layer = |letter: &str| format!("/data/layers/{}", letter.repeat(64));
    assert_eq!(launch.layers, [layer("a"), layer("b")]);
    assert_eq!(launch.task_dir, format!("/data/tasks/{id}"));
    assert_eq!(launch.run_dir, format!("/run/skep/tasks/{id}"));
    assert_eq!(launch.cgroup, format!("/skep/{}/{id}", node.node));
    assert_eq!(launch.shim_cgroup, format!("/skep/{}/shim-{id}", node.node));
    assert_eq!(launch.user, "app");
    assert_eq!((launch.files[0].target.as_str(), launch.files[0].mode), ("db-password", 0o440));
    assert_eq!(launch.files[0].signal, Some(1));
    assert_eq!(plan.stop_signal, 15);
    assert_eq!(plan.etc.hostname, launch.container_id[..12]);
    let bytes = minicbor::to_vec(&launch).unwrap();
    assert_eq!(crate::wire::parse::<Launch>(&bytes).unwrap(), launch);
}

#[test]
fn command_and_arguments_are_merged_by_dockers_rules() {
    let image =
        ImageConfig { entrypoint: words(&["/e"]), cmd: words(&["c"]), ..ImageConfig::default() };
    for (command_said, args_said, entrypoint, cmd) in [
        (&[][..], &[][..], &["/e"][..], &["c"][..]),
        (&[], &["a"], &["/e"], &["a"]),
        (&["/x"], &[], &["/x"], &[]),
        (&["/x"], &["a"], &["/x"], &["a"]),
    ] {
        let spec = ContainerSpec {
            command: words(command_said),
            args: words(args_said),
            ..ContainerSpec::default()
        };
        assert_eq!(command(&spec, &image), (words(entrypoint), words(cmd)));
    }
    let none = plan_of(|spec| spec.container.args.clear());
    assert!(matches!(none, Err(PlanError::NoCommand)));
}

#[test]
fn networks_are_the_predefined_ones() {
    assert_eq!(plan_of(|_| ()).unwrap().network, Network::Private);
    let host = plan_of(|spec| spec.networks = vec![on("host")]).unwrap();
    assert_eq!((host.network, host.etc.hostname.as_str()), (Network::Host, "metal"));
    let bundle: Value = serde_json::from_str(&host.launch.bundle).unwrap();
    let kinds = bundle["linux"]["namespaces"].as_array().unwrap();
    assert!(!kinds.contains(&serde_json::json!({"type": "network"})));
    assert_eq!(bundle["linux"]["sysctl"], serde_json::json!({}));
    let unknown = plan_of(|spec| spec.networks = vec![on("mesh")]).unwrap_err();
    assert_eq!(unknown.to_string(), "network mesh not found");
    let mixed = plan_of(|spec| spec.networks = vec![on("bridge"), on("host")]).unwrap_err();
    assert!(matches!(mixed, PlanError::NetworkMix("host")));
    let sysctl = plan_of(|spec| {
        spec.networks = vec![on("host")];
        spec.container.sysctls.insert("net.core.somaxconn".into(), "9".into());
    });
    assert!(matches!(sysctl, Err(PlanError::SysctlOfHost(_))));
}

#[test]
fn limits_become_quota_and_bounds() {
    let bundle = bundle_of(|spec| {
        let limits = Resources {
            nano_cpus: 1_500_000_000,
            memory_bytes: 64 << 20,
            pids: 7,
            ..Default::default()
        };
        spec.resources = Some(ResourceNeeds { limits: Some(limits), reservations: None });
        spec.container.ulimits = vec![Ulimit { name: "nofile".into(), hard: -1, soft: 64 }];
        spec.container.oom_score_adj = 300;
    });
    let resources = &bundle["linux"]["resources"];
    assert_eq!(resources["cpu"]["quota"], 150_000);
    assert_eq!(resources["cpu"]["period"], 100_000);
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(resources["pids"]["limit"], 7);
    assert_eq!(bundle["process"]["oomScoreAdj"], 300);
    assert_eq!(bundle["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert_eq!(bundle["process"]["rlimits"][0]["hard"], u64::MAX);
    let bad = plan_of(|spec| {
        spec.container.ulimits = vec![Ulimit { name: "x".into(), ..Default::default() }]
    });
    assert!(matches!(bad, Err(PlanError::Ulimit(_))));
}

#[test]
fn environment_is_layered() {
    let mut image = image();
    image.config.env = words(&["PATH=/img", "A=1", "B=1", "C=1"]);
    let spec = sleeping(|spec| {
        spec.container.env = words(&["A=2", "B", "D=x=y", "D=z"]);
        spec.container.tty = true;
        spec.container.hostname = "h".into();
    });
    let node = node(Path::new("/data"), Path::new("/run/skep"));
    let plan = plan(&assignment(spec), &image, &node).unwrap();
    let bundle: Value = serde_json::from_str(&plan.launch.bundle).unwrap();
    let env = serde_json::json!(["PATH=/img", "HOSTNAME=h", "TERM=xterm", "A=2", "C=1", "D=z"]);
    assert_eq!(bundle["process"]["env"], env);
    assert_eq!(bundle["process"]["terminal"], true);
}

fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
    Mount {
        kind,
        source: source.into(),
        target: target.into(),
        read_only: false,
        propagation: String::new(),
        non_recursive: false,
        create_source: false,
        tmpfs_size: 0,
        tmpfs_mode: 0,
        no_copy: false,
        volume_labels: Default::default(),
        options_sent: 0,
    }
}

#[test]
fn mounts_are_ordered_and_replace_the_defaults() {
    let plan = plan_of(|spec| {
        let deep = Mount { read_only: true, ..mount(MountKind::Bind, "/src/deep", "/a/b/c") };
        let shared =
            Mount { propagation: "rslave".into(), ..mount(MountKind::Bind, "/src", "/a/") };
        let memory = Mount {
            tmpfs_size: 1024,
            tmpfs_mode: 0o1770,
            ..mount(MountKind::Tmpfs, "", "/dev/shm")
        };
        let hosts = mount(MountKind::Bind, "/src/hosts", "/etc/hosts");
        spec.container.mounts = vec![deep, shared, memory, hosts];
    })
    .unwrap();
    assert_eq!(plan.sources.len(), 3);
    let bundle: Value = serde_json::from_str(&plan.launch.bundle).unwrap();
    let mounts = bundle["mounts"].as_array().unwrap();
    let at = |target: &str| {
        let found: Vec<_> =
            (0..mounts.len()).filter(|i| mounts[*i]["destination"] == target).collect();
        assert_eq!(found.len(), 1, "{target}");
        found[0]
    };
    assert!(at("/a") < at("/a/b/c"));
    assert_eq!(mounts[at("/a/b/c")]["options"], serde_json::json!(["rbind", "ro", "rprivate"]));
    assert_eq!(bundle["linux"]["rootfsPropagation"], "slave");
    assert_eq!(mounts[at("/etc/hosts")]["source"], "/src/hosts");
    let options = mounts[at("/dev/shm")]["options"].as_array().unwrap();
    assert!(options.contains(&"mode=1770".into()) && options.contains(&"size=1024".into()));
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let with = |mounts: Vec<Mount>| plan_of(|spec| spec.container.mounts = mounts).unwrap_err();
    let volume = with(vec![mount(MountKind::Volume, "data", "/d")]);
    assert_eq!(volume.to_string(), "volumes are not supported yet: \"data\" at /d");
    for target in ["", "d", "/", "//", "/a/../b"] {
        let error = with(vec![mount(MountKind::Bind, "/s", target)]);
        assert!(matches!(error, PlanError::MountTarget { .. }), "{target}");
    }
    let twice = with(vec![mount(MountKind::Bind, "/s", "/d"), mount(MountKind::Bind, "/t", "/d/")]);
    assert_eq!(twice.to_string(), "Duplicate mount point: /d");
    assert!(matches!(with(vec![mount(MountKind::Bind, "s", "/d")]), PlanError::BindSource(_)));
    let odd = Mount { propagation: "odd".into(), ..mount(MountKind::Bind, "/s", "/d") };
    assert!(matches!(with(vec![odd]), PlanError::Propagation(_)));
}

#[test]
fn a_read_only_root_leaves_the_kernels_mounts_writable() {
    let bundle = bundle_of(|spec| spec.container.read_only = true);
    assert_eq!(bundle["root"]["readonly"], true);
    for mount in bundle["mounts"].as_array().unwrap() {
        let is_ro = mount["options"].as_array().unwrap().contains(&"ro".into());
        let target = mount["destination"].as_str().unwrap();
        assert_eq!(is_ro, target.starts_with("/etc") || target.starts_with("/sys"), "{target}");
    }
}

#[test]
fn signals_have_many_spellings() {
    for (text, number) in [
        ("SIGTERM", Some(15)),
        ("usr1", Some(10)),
        ("SigQuit", Some(3)),
        ("9", Some(9)),
        ("RTMIN+3", Some(37)),
        ("SIGRTMAX-1", Some(63)),
        ("RTMIN", Some(34)),
        ("0", None),
        ("65", None),
        ("SIGNONSENSE", None),
        ("RTMIN+99", None),
    ] {
        assert_eq!(signal::number(text), number, "{text}");
    }
    let refused = plan_of(|spec| spec.container.stop_signal = "nope".into());
    assert!(matches!(refused, Err(PlanError::Signal(_))));
}

#[test]
fn log_options_are_read() {
    let driver = |name: &str, options: &[(&str, &str)]| Driver {
        name: name.into(),
        options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let read = |name, options| log_options(Some(&driver(name, options))).ok();
    assert_eq!(log_options(None).unwrap(), (0, 0));
    assert_eq!(read("", &[]), Some((0, 0)));
    assert_eq!(read("json-file", &[("max-size", "10m"), ("max-file", "2")]), Some((10 << 20, 2)));
    assert_eq!(read("json-file", &[("max-size", "64KiB")]), Some((64 << 10, 0)));
    assert_eq!(read("json-file", &[("max-size", "many")]), None);
    assert_eq!(read("json-file", &[("max-file", "0")]), None);
    assert_eq!(read("json-file", &[("colour", "red")]), None);
    assert_eq!(read("syslog", &[]), None);
}

#[test]
fn an_image_for_other_machines_is_refused() {
    let image = Image { architecture: "s390x".into(), ..image() };
    let node = node(Path::new("/data"), Path::new("/run/skep"));
    let error = plan(&assignment(sleeping(|_| ())), &image, &node).unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}
