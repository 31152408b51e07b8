//! The bundle against what Docker wrote for the same container.

use std::path::Path;

use serde_json::{Value, json};

use crate::engine::plan::plan;
use crate::engine::plan::tests::{assignment, image, node, sleeping};

fn golden() -> Value {
    serde_json::from_str(include_str!("testdata/docker.json")).unwrap()
}

fn ours() -> Value {
    let node = node(Path::new("/data"), Path::new("/run/skep"));
    let plan = plan(&assignment(sleeping(|_| ())), &image(), &node).unwrap();
    serde_json::from_str(&plan.launch.bundle).unwrap()
}

#[test]
fn a_plain_container_is_what_docker_makes() {
    let (golden, ours) = (golden(), ours());
    for set in ["bounding", "effective", "permitted"] {
        assert_eq!(ours["process"]["capabilities"][set], golden["capabilities"]);
    }
    let linux = &ours["linux"];
    for key in ["maskedPaths", "readonlyPaths", "namespaces", "sysctl"] {
        assert_eq!(linux[key], golden[key], "{key}");
    }
    assert_eq!(linux["resources"]["devices"], golden["devices"]);
    for key in ["args", "cwd", "oomScoreAdj"] {
        assert_eq!(ours["process"][key], golden["process"][key], "{key}");
    }
    let env = ours["process"]["env"].as_array().unwrap();
    let names: Vec<_> = env.iter().map(|e| e.as_str().unwrap().split('=').next()).collect();
    assert_eq!(json!(names), golden["process"]["env"]);
    let mut mounts = ours["mounts"].clone();
    for mount in mounts.as_array_mut().unwrap() {
        let mount = mount.as_object_mut().unwrap();
        if mount["source"].as_str().unwrap().starts_with('/') {
            mount.remove("source");
        }
    }
    assert_eq!(mounts, golden["mounts"]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_filter_is_dockers_but_for_x32() {
    let mut golden = golden()["seccomp"].clone();
    let architectures = golden["architectures"].as_array_mut().unwrap();
    architectures.retain(|name| name != "SCMP_ARCH_X32");
    assert_eq!(ours()["linux"]["seccomp"], golden);
}

#[test]
fn the_filter_widens_with_capabilities() {
    let names = |filter: &Value, call: &str| {
        let rules = filter["syscalls"].as_array().unwrap().clone();
        let of = |rule: &Value| rule["names"].as_array().unwrap().contains(&json!(call));
        rules.into_iter().filter(of).collect::<Vec<_>>()
    };
    let plain = super::seccomp::filter("x86_64", &[]);
    assert!(names(&plain, "mount").is_empty() && names(&plain, "chroot").is_empty());
    assert_eq!(names(&plain, "clone3")[0]["errnoRet"], 38);
    let admin = super::seccomp::filter("x86_64", &["CAP_SYS_ADMIN"]);
    assert_eq!(names(&admin, "mount").len(), 1);
    assert_eq!(names(&admin, "clone3")[0]["action"], "SCMP_ACT_ALLOW");
    let arm = super::seccomp::filter("aarch64", &[]);
    assert_eq!(arm["architectures"][0], "SCMP_ARCH_AARCH64");
    assert!(names(&arm, "arch_prctl").is_empty() && names(&arm, "set_tls").len() == 1);
}
