//! Images from store to store, over pipes of memory that break where a test wants.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::time::timeout;

use super::load::{Files, config, describe, digest, gzip, sha, zstd};
use super::*;
use crate::engine::images::exchange::{Came, FetchError, ImageSource, attempt, fetch, give};
use crate::gate::{Later, Refusal};
use crate::wire::image::Offer;
use crate::wire::relay::{Answer, Ask};
use crate::wire::{Stream, frame, receive};

const WAIT: Duration = Duration::from_secs(60);
const WIRE: usize = 16 << 10;

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(WAIT, work).await.expect("it takes too long")
}

/// Another store, which gives its images until so many bytes have gone over a stream.
#[derive(Debug)]
struct Giver {
    store: Arc<ImageStore>,
    cut: AtomicU64,
    opened: AtomicUsize,
    sent: Arc<AtomicU64>,
}

impl Giver {
    fn new(store: &Store) -> Self {
        Self {
            store: Arc::clone(&store.store),
            cut: AtomicU64::new(u64::MAX),
            opened: AtomicUsize::new(0),
            sent: Arc::default(),
        }
    }
}

impl ImageSource for Giver {
    fn open(&self, _: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (ours, far) = duplex(WIRE);
        let (mut near, mut theirs) = duplex(WIRE);
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            let Ok(Ask::Image { name }) = receive(&mut theirs, 1 << 20).await else { return };
            let _ = give(&store, &name, &mut theirs).await;
        });
        let (mut left, sent) = (self.cut.load(Ordering::SeqCst), Arc::clone(&self.sent));
        tokio::spawn(async move {
            let (mut far_rx, mut far_tx) = tokio::io::split(far);
            let (mut near_rx, mut near_tx) = tokio::io::split(&mut near);
            let up = async {
                let _ = tokio::io::copy(&mut far_rx, &mut near_tx).await;
                let _ = near_tx.shutdown().await;
                std::future::pending::<()>().await;
            };
            let down = async {
                let mut buffer = vec![0; 1 << 10];
                while left > 0 {
                    let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let Ok(len @ 1..) = near_rx.read(&mut buffer[..most]).await else { break };
                    left -= len as u64;
                    sent.fetch_add(len as u64, Ordering::SeqCst);
                    if far_tx.write_all(&buffer[..len]).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! { () = up => {}, () = down => {} }
        });
        Box::pin(async move { Ok(Box::new(ours) as _) })
    }
}

fn progress() -> watch::Sender<Came> {
    watch::Sender::new(Came::default())
}

async fn take(store: &Store, name: &str, from: &dyn ImageSource) -> Result<(), FetchError> {
    soon(fetch(&store.store, name, from, &progress())).await
}

/// One try.
async fn once(store: &Store, name: &str, from: &dyn ImageSource) -> Result<bool, FetchError> {
    soon(attempt(&store.store, name, from, &progress())).await
}

type Pack = fn(&[u8]) -> Vec<u8>;

/// A layer that no packer makes smaller.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(bytes)
    .collect();
    let mut tar = Tar::new();
    tar.file(&format!("noise-{seed}"), &data);
    tar.done()
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// An image of these layers with a name, in a store of its own.
fn stored(layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>, kind: &str) -> Store {
    let (mut files, mut described) = Files::oci(layers, pack, kind);
    described["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:1"});
    files.index(&[described]);
    let store = Store::new();
    // The index of a layout without names comes first: the later one counts.
    files.0.retain({
        let mut seen = 0;
        move |(name, _)| {
            let is_top = name == "index.json" || name == "oci-layout";
            seen += usize::from(is_top);
            !is_top || seen > 2
        }
    });
    store.load(&files.tar()).unwrap();
    store
}

fn same(a: &Store, b: &Store, name: &str) {
    let (one, other) = (a.store.resolve(name).unwrap(), b.store.resolve(name).unwrap());
    assert_eq!((&one.id, &one.manifest_digest), (&other.id, &other.manifest_digest));
    assert_eq!((&one.diff_ids, one.bytes), (&other.diff_ids, other.bytes));
    assert_eq!(a.files("images/blobs/sha256"), b.files("images/blobs/sha256"));
    assert_eq!(a.files("layers"), b.files("layers"));
    assert!(b.files("images/partial").is_empty(), "{:?}", b.files("images/partial"));
}

#[tokio::test]
async fn an_image_comes_whole_however_it_is_kept() {
    let layers = [noise(1, 200_000), super::load::layer("a")];
    let kinds: [(Pack, &str); 3] = [(gzip, "tar+gzip"), (zstd, "tar+zstd"), (plain, "tar")];
    for (pack, kind) in kinds {
        let (from, mut to) = (stored(&layers, pack, kind), Store::new());
        let came = progress();
        soon(fetch(&to.store, "app:1", &Giver::new(&from), &came)).await.unwrap();
        same(&from, &to, "app:1");
        let came = *came.borrow();
        assert!(came.bytes == came.of && came.of > 200_000, "{came:?}");
        let image = to.store.resolve("app:1").unwrap();
        assert_eq!(fs::read(to.layer(&image).join("noise-1")).unwrap().len(), 200_000);
        to.reopen();
        same(&from, &to, "app:1");
        // It can be passed on.
        let third = Store::new();
        take(&third, "app:1", &Giver::new(&to)).await.unwrap();
        same(&from, &third, "app:1");
    }
    let (from, to) = (Store::new(), Store::new());
    from.image("hello", "busybox");
    take(&to, "busybox", &Giver::new(&from)).await.unwrap();
    same(&from, &to, "busybox");
}

#[tokio::test]
async fn an_image_is_found_by_digest_and_id_but_not_by_the_beginning_of_one() {
    let from = Store::new();
    let image = from.image("hello", "busybox");
    let by_digest = format!("busybox@{}", image.manifest_digest);
    let with_tag = format!("busybox:7@{}", image.manifest_digest);
    for name in [&by_digest, &with_tag, &image.id, &image.id[7..].to_owned()] {
        let to = Store::new();
        take(&to, name, &Giver::new(&from)).await.unwrap();
        assert_eq!(to.store.resolve(name).unwrap().id, image.id, "{name}");
        assert!(to.store.resolve("busybox:latest").is_err(), "{name}");
    }
    let to = Store::new();
    for name in [&image.id[7..20], "nothing", "busybox:other"] {
        let error = take(&to, name, &Giver::new(&from)).await.unwrap_err();
        assert!(matches!(error, FetchError::Missing(_)), "{error:?}");
        assert_eq!(error.to_string(), format!("No such image: {name}"));
    }
}

#[tokio::test]
async fn cut_anywhere_it_goes_on_where_it_was() {
    let layers = [noise(2, 60_000), noise(3, 30_000)];
    for (cut, pack, kind) in
        [(7_000, plain as fn(&[u8]) -> Vec<u8>, "tar"), (9_001, gzip, "tar+gzip")]
    {
        let (from, mut to) = (stored(&layers, pack, kind), Store::new());
        let giver = Giver::new(&from);
        giver.cut.store(cut, Ordering::SeqCst);
        let mut tries = 0;
        loop {
            match once(&to, "app:1", &giver).await {
                Ok(done) => break assert!(done),
                Err(error) => assert!(matches!(error, FetchError::Lost(_)), "{error:?}"),
            }
            tries += 1;
            // What came outlives the daemon.
            to.reopen();
        }
        // Each try begins with the documents, which are short, and repeats no part of a layer.
        assert!((10..=30).contains(&tries), "{tries}");
        assert!(giver.sent.load(Ordering::SeqCst) < 91_000 + 1_600 * (tries + 1), "{tries}");
        same(&from, &to, "app:1");
    }
    // The same as a daemon does it, which waits between tries.
    let (from, to) = (stored(&layers, plain, "tar"), Store::new());
    let giver = Giver::new(&from);
    giver.cut.store(40_000, Ordering::SeqCst);
    take(&to, "app:1", &giver).await.unwrap();
    same(&from, &to, "app:1");
}

#[tokio::test]
async fn layers_that_are_here_are_not_sent_again() {
    let base = noise(4, 100_000);
    let one = stored(&[base.clone(), noise(5, 1_000)], plain, "tar");
    let two = stored(&[base, noise(6, 1_000)], plain, "tar");
    let to = Store::new();
    take(&to, "app:1", &Giver::new(&one)).await.unwrap();
    to.store.tag("app:1", "app:0").unwrap();
    let giver = Giver::new(&two);
    take(&to, "app:1", &giver).await.unwrap();
    assert!(giver.sent.load(Ordering::SeqCst) < 10_000);
    assert_eq!(to.store.resolve("app:1").unwrap().id, two.store.resolve("app:1").unwrap().id);
    assert_eq!(to.store.resolve("app:0").unwrap().id, one.store.resolve("app:1").unwrap().id);
}

#[tokio::test]
async fn many_at_once_download_each_layer_once() {
    let base = noise(7, 300_000);
    let from = Store::new();
    let mut loads = Vec::new();
    for n in 0..3u64 {
        let (mut files, mut described) =
            Files::oci(&[base.clone(), noise(8 + n, 1_000)], plain, "tar");
        described["annotations"] = json!({"io.containerd.image.name": format!("app:{n}")});
        files.0.retain(|(name, _)| name != "index.json" && name != "oci-layout");
        files.index(&[described]);
        loads.push(files.tar());
    }
    for archive in &loads {
        from.load(archive).unwrap();
    }
    let (to, giver) = (Store::new(), Giver::new(&from));
    let takes = (0..9).map(|n| {
        let (to, giver) = (&to, &giver);
        async move { take(to, &format!("app:{}", n % 3), giver).await.unwrap() }
    });
    futures_util::future::join_all(takes).await;
    for n in 0..3 {
        same(&from, &to, &format!("app:{n}"));
    }
    let sent = giver.sent.load(Ordering::SeqCst);
    assert!(sent < 400_000, "{sent}");
}

/// Makes the only blob of at least so many bytes wrong.
fn damage(store: &Store, at_least: u64) {
    let dir = store.dir.path().join("images/blobs/sha256");
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() as u64 >= at_least {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_not_what_it_is_called_is_thrown_away() {
    let layers = [noise(11, 50_000)];
    let kinds: [(Pack, &str); 2] = [(gzip, "tar+gzip"), (plain, "tar")];
    for (pack, kind) in kinds {
        let (from, to) = (stored(&layers, pack, kind), Store::new());
        let good = stored(&layers, pack, kind);
        damage(&from, 40_000);
        let error = once(&to, "app:1", &Giver::new(&from)).await.unwrap_err();
        assert!(matches!(error, FetchError::Image(_)) && !error.is_final(), "{error:?}");
        assert!(to.files("images/partial").is_empty() && to.files("layers").is_empty());
        assert!(to.store.list().is_empty());
        // Half of it from a liar, the rest from another: thrown away, then taken whole.
        let half = Giver::new(&from);
        half.cut.store(40_000, Ordering::SeqCst);
        once(&to, "app:1", &half).await.unwrap_err();
        assert_eq!(to.files("images/partial").len(), 1);
        once(&to, "app:1", &Giver::new(&good)).await.unwrap_err();
        assert!(once(&to, "app:1", &Giver::new(&good)).await.unwrap());
        same(&good, &to, "app:1");
    }
}

/// A node that says this, whatever it is asked.
#[derive(Debug)]
struct Liar(Vec<u8>);

impl ImageSource for Liar {
    fn open(&self, _: &str) -> Later<'_, Result<Box<dyn Stream>, Refusal>> {
        let (ours, mut theirs): (DuplexStream, DuplexStream) = duplex(WIRE);
        let said = self.0.clone();
        tokio::spawn(async move {
            let _ = theirs.write_all(&said).await;
            let _ = theirs.read_to_end(&mut Vec::new()).await;
        });
        Box::pin(async move { Ok(Box::new(ours) as _) })
    }
}

/// An offer of one packed layer, as `alter` makes it.
fn offer(packed: &[u8], layer: &[u8], alter: impl Fn(&mut Value, &mut Value, &mut Offer)) -> Offer {
    let architecture = oci_spec::image::Arch::default().to_string();
    let mut config: Value =
        serde_json::from_slice(&config(&[layer.to_vec()], &architecture)).unwrap();
    let mut manifest = json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {},
        "layers": [describe("application/vnd.oci.image.layer.v1.tar+gzip", packed)]});
    let mut offer = Offer {
        manifest: Vec::new(),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        config: Vec::new(),
        layers: vec![packed.len() as u64],
    };
    alter(&mut config, &mut manifest, &mut offer);
    offer.config = config.to_string().into_bytes();
    if manifest["config"] == json!({}) {
        manifest["config"] = describe("application/vnd.oci.image.config.v1+json", &offer.config);
    }
    if offer.manifest.is_empty() {
        offer.manifest = manifest.to_string().into_bytes();
    }
    offer
}

/// An offer of which nothing follows.
pub(in crate::engine::images) fn test_offer() -> Offer {
    offer(&[0; 2_500_000], b"", |_, _, _| ())
}

/// What comes of an offer as `alter` makes it, with these bytes behind it.
async fn offered(
    store: &Store,
    name: &str,
    alter: impl Fn(&mut Value, &mut Value, &mut Offer),
    behind: &[u8],
) -> Result<bool, FetchError> {
    let layer = super::load::layer("x");
    let packed = gzip(&layer);
    let mut said = frame(&Answer::Image(Box::new(offer(&packed, &layer, alter))));
    said.extend(&packed);
    said.extend(behind);
    once(store, name, &Liar(said)).await
}

#[tokio::test]
async fn offers_that_lie_are_refused() {
    let store = Store::new();
    type Alter = fn(&mut Value, &mut Value, &mut Offer);
    let lies: [(&str, &str, Alter); 14] = [
        ("app", "another configuration", |_, m, _| {
            m["config"] = describe("application/vnd.oci.image.config.v1+json", b"{}")
        }),
        ("app", "bytes are offered", |_, _, o| o.layers[0] += 1),
        ("app", "bytes are offered", |_, m, _| m["layers"][0]["size"] = json!(u64::MAX / 4)),
        ("app", "bytes are offered", |_, m, o| {
            m["layers"][0]["size"] = json!(1u64 << 62);
            o.layers[0] = 1 << 62;
        }),
        ("app", "are offered of 1", |_, _, o| o.layers.clear()),
        ("app", "are offered of 1", |_, _, o| o.layers.push(1)),
        ("app", "no sha256 digest", |_, m, _| {
            m["layers"][0]["digest"] = json!("sha512:".to_owned() + &"a".repeat(128))
        }),
        ("app", "is not known", |_, m, _| m["layers"][0]["mediaType"] = json!("text/plain")),
        ("app", "is no manifest", |_, _, o| o.media_type = "text/plain".to_owned()),
        ("app", "not the JSON", |_, _, o| o.manifest = b"no".to_vec()),
        ("app", "not for", |c, _, _| c["architecture"] = json!("pdp11")),
        ("app", "are named for 1 layers", |c, _, _| c["rootfs"]["diff_ids"] = json!([])),
        ("app", "unpacks to", |c, _, _| c["rootfs"]["diff_ids"] = json!([digest(b"other")])),
        (
            "app@sha256:1111111111111111111111111111111111111111111111111111111111111111",
            "its content has the digest",
            |_, _, _| (),
        ),
    ];
    for (name, text, alter) in lies {
        let error = offered(&store, name, alter, b"").await.unwrap_err();
        let mut said = String::new();
        let mut next: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = next {
            said += &format!("{error}: ");
            next = error.source();
        }
        assert!(said.contains(text), "{text}: {said}");
        assert!(store.store.list().is_empty() && store.files("layers").is_empty(), "{text}");
        assert!(store.files("images/partial").is_empty(), "{text}");
    }
    let many = |_: &mut Value, m: &mut Value, o: &mut Offer| {
        let layer = m["layers"][0].clone();
        m["layers"] = json!(vec![layer; 501]);
        o.layers = vec![o.layers[0]; 501];
    };
    assert!(offered(&store, "app", many, b"").await.is_err());
    // A giver that goes on and on is not listened to.
    let endless = vec![7; 100_000];
    assert!(offered(&store, "app", |_, _, _| (), &endless).await.unwrap());
    assert!(store.store.resolve("app").is_ok());
    let error = once(&store, "other", &Liar(u32::MAX.to_be_bytes().to_vec())).await.unwrap_err();
    assert!(format!("{error:?}").contains("TooLong"), "{error:?}");
    let error = once(&store, "other", &Liar(frame(&Answer::Done))).await.unwrap_err();
    assert!(format!("{error:?}").contains("Unexpected"), "{error:?}");
}

#[tokio::test]
async fn an_asker_gets_nothing_but_the_layers_of_the_image() {
    let from = stored(&[noise(12, 1_000)], plain, "tar");
    let (layer, offset) = (crate::wire::image::Want { layer: 1, offset: 0 }, u64::MAX);
    for want in [layer, crate::wire::image::Want { layer: 0, offset }] {
        let (mut ours, mut theirs) = duplex(WIRE);
        let store = Arc::clone(&from.store);
        let giving = tokio::spawn(async move { give(&store, "app:1", &mut theirs).await });
        let offer: Answer = soon(receive(&mut ours, 1 << 20)).await.unwrap();
        assert!(matches!(offer, Answer::Image(_)));
        ours.write_all(&frame(&want)).await.unwrap();
        let mut rest = Vec::new();
        soon(ours.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
        assert!(soon(giving).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn what_is_being_given_stays() {
    let (from, to) = (stored(&[noise(13, 500_000)], plain, "tar"), Store::new());
    let giver = Giver::new(&from);
    let came = progress();
    let mut seen = came.subscribe();
    let remove = async {
        seen.wait_for(|came| came.of > 0).await.unwrap();
        from.store.remove("app:1", true, &|_| None).unwrap();
    };
    let (taken, ()) =
        soon(async { tokio::join!(attempt(&to.store, "app:1", &giver, &came), remove) }).await;
    assert!(taken.unwrap());
    assert!(to.store.resolve("app:1").is_ok() && from.store.list().is_empty());
}

#[tokio::test]
async fn a_dropped_download_lets_others_go_on() {
    let (from, to) = (stored(&[noise(14, 200_000)], plain, "tar"), Store::new());
    let giver = Giver::new(&from);
    giver.cut.store(100_000, Ordering::SeqCst);
    {
        let came = progress();
        let mut seen = came.subscribe();
        let half = attempt(&to.store, "app:1", &giver, &came);
        let enough = seen.wait_for(|came| came.bytes > 0);
        soon(async {
            tokio::select! { _ = half => {}, _ = enough => {} }
        })
        .await;
    }
    giver.cut.store(u64::MAX, Ordering::SeqCst);
    take(&to, "app:1", &giver).await.unwrap();
    same(&from, &to, "app:1");
}

#[test]
fn old_and_many_unfinished_layers_go() {
    let mut store = Store::new();
    let dir = store.dir.path().join("images/partial");
    let make = |name: &str, bytes: u64, hours: u64| {
        let file = fs::File::create(dir.join(name)).unwrap();
        // A hole takes no room on the disk, and counts all the same.
        file.set_len(bytes).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
    };
    make(&sha(b"old"), 1, 25);
    make(&sha(b"young"), 1, 1);
    make(&sha(b"large"), 10 << 30, 2);
    make(&sha(b"too much"), 10 << 30, 3);
    store.reopen();
    assert_eq!(store.files("images/partial"), [sha(b"young"), sha(b"large")].into());
}
