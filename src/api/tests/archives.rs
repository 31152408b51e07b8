//! Images loaded and saved over HTTP.

use std::io::Read;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::*;

async fn load(gate: &Arc<FakeGate>, query: &str, archive: Vec<u8>) -> Answer {
    let request = Request::post(format!("/v1.50/images/load{query}"))
        .header("host", "skep")
        .header("content-type", "application/x-tar")
        .body(Full::new(Bytes::from(archive)))
        .unwrap();
    let answered = async {
        let reply = client(gate).await.send_request(request).await.unwrap();
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    };
    tokio::time::timeout(WAIT, answered).await.unwrap()
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    let lines = answer.text().split("\r\n").filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An image whose first layer is good; the second is what a test wants.
fn two_layers(second: &[u8]) -> Vec<u8> {
    let first = super::fake::archive();
    let digest = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        format!("sha256:{hex}")
    };
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&first), digest(second)]}});
    let manifest =
        json!([{"Config": "config", "RepoTags": ["two:1"], "Layers": ["first", "second"]}]);
    let mut tar = tar::Builder::new(Vec::new());
    let (config, manifest) = (config.to_string(), manifest.to_string());
    for (name, bytes) in [
        ("first", &first[..]),
        ("second", second),
        ("config", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn images_are_saved_and_loaded() {
    let (from, to) = (FakeGate::manager(), FakeGate::manager());
    from.image("host.example:5000/team/app:1");
    from.image("other:1");
    let id = get(&from, "/images/other:1/json").await.json()["Id"].as_str().unwrap().to_owned();
    let saved = get(&from, "/images/get?names=other:1&names=host.example:5000/team/app:1").await;
    assert_eq!((saved.status, saved.header("content-type")), (200, "application/x-tar"));
    let loaded = lines(&load(&to, "?quiet=1", saved.body.to_vec()).await);
    let mut told: Vec<_> = loaded.iter().map(|line| line["stream"].as_str().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, ["Loaded image: host.example:5000/team/app:1\n", "Loaded image: other:1\n"]);
    assert_eq!(get(&to, "/images/other:1/json").await.json()["Id"], id);
    // By its path, by id, and with progress.
    let path = format!("/images/{id}/get");
    let saved = get(&from, &path).await;
    let third = FakeGate::manager();
    let loaded = lines(&load(&third, "", saved.body.to_vec()).await);
    assert_eq!(loaded.last().unwrap()["stream"], format!("Loaded image ID: {id}\n"));
    let first = &loaded[0];
    assert_eq!(
        (&first["status"], first["id"].as_str().unwrap().len()),
        (&json!("Loading layer"), 12)
    );
    assert_eq!(first["progressDetail"]["current"], first["progressDetail"]["total"]);
    let again = get(&from, "/images/host.example:5000/team/app:1/get").await;
    assert_eq!(again.status, 200);
}

#[tokio::test]
async fn what_cannot_be_loaded_or_saved_says_so() {
    let gate = FakeGate::manager();
    gate.image("app:1");
    for (query, text) in [
        ("", "no image is named"),
        ("?names=app:1&names=nope:1", "No such image: nope:1"),
        ("?names=app:1&platform=%7B%22architecture%22%3A%22arm64%22%7D", "not for linux/arm64"),
        ("?names=app:1&platform=arm", "invalid platform"),
    ] {
        let refused = get(&gate, &format!("/images/get{query}")).await;
        let status = if text.contains("image: nope") || text.contains("arm64") { 404 } else { 400 };
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.message().contains(text), "{refused:?}");
    }
    let refused = load(&gate, "", vec![7; 100_000]).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.message().starts_with("the archive cannot be loaded: this is no tar"));
    let refused = load(&gate, "", super::fake::archive()).await;
    assert!(refused.message().contains("the archive holds no images"), "{refused:?}");
    let good = two_layers(&super::fake::archive());
    let refused = load(&gate, "?platform=%7B%22architecture%22%3A%22arm64%22%7D", good).await;
    assert!(refused.message().contains("not for linux/arm64"), "{refused:?}");
    // Once something was said the status is, too: the error comes as a message.
    let bad = two_layers(&[7; 4096]);
    let told = lines(&load(&gate, "", bad.clone()).await);
    let text = told.last().unwrap()["errorDetail"]["message"].as_str().unwrap();
    assert!(text.starts_with("image two:1: layer 2 cannot be unpacked: this is no tar"), "{text}");
    assert_eq!(told.last().unwrap()["error"], text);
    let refused = load(&gate, "?quiet=1", bad).await;
    assert_eq!((refused.status, refused.message()), (400, text.to_owned()));
    assert_eq!(get(&gate, "/images/json").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_image_breaks_the_connection_off() {
    let gate = FakeGate::manager();
    gate.image("app:1");
    let blobs = std::fs::read_dir(gate.dir.path().join("images/blobs/sha256")).unwrap();
    let mut packed = blobs.map(|entry| entry.unwrap().path());
    let packed = packed.find(|path| path.extension().is_some_and(|end| end == "zst")).unwrap();
    let mut whole = Vec::new();
    zstd::Decoder::new(std::fs::File::open(&packed).unwrap())
        .unwrap()
        .read_to_end(&mut whole)
        .unwrap();
    whole[600] ^= 1;
    std::fs::write(&packed, zstd::encode_all(whole.as_slice(), 1).unwrap()).unwrap();
    let request = Request::get("/images/app:1/get").header("host", "skep");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    // The connection may end before or after the head of the answer is on its way.
    if let Ok(reply) = client(&gate).await.send_request(request).await {
        assert!(reply.into_body().collect().await.is_err(), "it must not look whole");
    }
}
