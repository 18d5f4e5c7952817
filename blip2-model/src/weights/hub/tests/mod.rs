//! The hub with a client that needs no network.

mod loopback;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::super::checkpoint_dir;
use super::super::fixtures;
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEWER: &str = "89abcdef0123456789abcdef0123456789abcdef";

type Files = BTreeMap<String, Vec<u8>>;

fn sharded_repo() -> Files {
    let mut files: Files = std::fs::read_dir(fixtures::path("sharded"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.insert("tokenizer.json".into(), b"{}".to_vec());
    files.insert("README.md".into(), b"not needed".to_vec());
    files.insert("flax_model.msgpack".into(), vec![0; 100]);
    files
}

fn etag(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn listing(files: &Files, commit: &str) -> Listing {
    let file = |(name, content): (&String, &Vec<u8>)| RemoteFile {
        name: name.clone(),
        size: Some(content.len() as u64),
        etag: Some(etag(content)),
    };
    Listing {
        commit: commit.into(),
        files: files.iter().map(file).collect(),
    }
}

fn id(text: &str) -> HubId {
    text.parse().unwrap()
}

fn settings(cache: &Path) -> HubSettings {
    HubSettings {
        cache: cache.to_owned(),
        offline: false,
        endpoint: "http://127.0.0.1:9".into(),
        token: None,
        retries: 0,
    }
}

fn fault(result: Result<Snapshot>) -> HubFault {
    match result {
        Err(WeightsError::Hub { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

/// A client without a network.
struct Fake {
    files: Files,
    commit: &'static str,
    cache: PathBuf,
    reachable: bool,
    fetched: Mutex<Vec<String>>,
}

impl Fake {
    fn new(cache: &Path, files: Files) -> Self {
        Self {
            files,
            commit: COMMIT,
            cache: cache.to_owned(),
            reachable: true,
            fetched: Mutex::default(),
        }
    }

    fn fetched(&self) -> Vec<String> {
        std::mem::take(&mut self.fetched.lock().unwrap())
    }
}

impl HubClient for Fake {
    fn list(&self, id: &HubId) -> Result<Listing> {
        if !self.reachable {
            let fault = HubFault::Unreachable {
                endpoint: "fake".into(),
                reason: "cable cut".into(),
            };
            return Err(WeightsError::Hub {
                id: id.to_string(),
                fault,
            });
        }
        Ok(listing(&self.files, self.commit))
    }

    fn fetch(&self, id: &HubId, commit: &str, file: &RemoteFile, _: &mut dyn Progress) -> Result<()> {
        let cache = RepoCache::new(&self.cache, id);
        let blob = cache.blob(file.etag.as_deref().unwrap());
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(&blob, &self.files[&file.name]).unwrap();
        assert!(cache.has(commit, file)?);
        self.fetched.lock().unwrap().push(file.name.clone());
        Ok(())
    }
}

#[test]
fn ids_are_checked_before_they_become_paths_or_addresses() {
    let parsed = id("Salesforce/blip2-opt-2.7b@refs/pr/3");
    assert_eq!(
        (parsed.repo.as_str(), parsed.revision.as_str()),
        ("Salesforce/blip2-opt-2.7b", "refs/pr/3")
    );
    assert_eq!(parsed.to_string(), "Salesforce/blip2-opt-2.7b@refs/pr/3");
    assert_eq!(id("gpt2").revision, "main");
    for bad in [
        "",
        "a/b/c",
        "../b",
        "a/..",
        "a b",
        "/a",
        "a/",
        "a@",
        "a@../../x",
        "a@b//c",
        "a--b/c",
        "a/b?x",
        "a/b@é",
        ".a/b",
        "a@/x",
    ] {
        assert!(bad.parse::<HubId>().is_err(), "{bad}");
    }
}

#[test]
fn only_what_is_needed_is_fetched_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let client = Fake::new(dir.path(), sharded_repo());
    let snapshot = resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    let shard = |i| format!("model-0000{i}-of-00003.safetensors");
    let all = [
        "config.json".into(),
        "tokenizer.json".into(),
        "model.safetensors.index.json".into(),
        shard(1),
        shard(2),
        shard(3),
    ];
    assert_eq!(client.fetched(), all);
    assert_eq!(snapshot.downloaded, all);
    assert_eq!(
        snapshot.folder,
        dir.path().join("models--org--model/snapshots").join(COMMIT)
    );
    fixtures::assert_holds(
        checkpoint_dir::open(&snapshot.folder).unwrap().source.as_ref(),
        "sharded",
    );

    let again = resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    assert_eq!((client.fetched().len(), again.downloaded.len()), (0, 0));

    // offline: by branch, by commit, and without asking the client
    let offline = HubSettings {
        offline: true,
        ..settings(dir.path())
    };
    let client = Fake {
        reachable: false,
        ..client
    };
    for text in ["org/model".to_owned(), format!("org/model@{COMMIT}")] {
        let snapshot = resolve_with(&client, &id(&text), &offline, &mut ()).unwrap();
        assert_eq!((snapshot.commit.as_str(), snapshot.not_refreshed), (COMMIT, None));
    }
    // no network: the cache stands in and says so
    let snapshot = resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    assert_eq!(snapshot.not_refreshed.as_deref(), Some("cable cut"));
}

#[test]
fn a_new_commit_fetches_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Fake::new(dir.path(), sharded_repo());
    resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    client.fetched();
    client.commit = NEWER;
    client
        .files
        .insert("tokenizer.json".into(), b"{\"v\": 2}".to_vec());
    let snapshot = resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    assert_eq!(snapshot.downloaded, ["tokenizer.json"]);
    assert_eq!(
        std::fs::read(snapshot.folder.join("tokenizer.json")).unwrap(),
        b"{\"v\": 2}"
    );
    fixtures::assert_holds(
        checkpoint_dir::open(&snapshot.folder).unwrap().source.as_ref(),
        "sharded",
    );
}

#[test]
fn offline_without_a_complete_snapshot_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let offline = HubSettings {
        offline: true,
        ..settings(dir.path())
    };
    let client = Fake::new(dir.path(), sharded_repo());
    let f = fault(resolve_with(&client, &id("org/model"), &offline, &mut ()));
    assert!(
        matches!(&f, HubFault::NotCached { cache } if cache.ends_with("models--org--model")),
        "{f}"
    );

    // a cache as Python leaves it after an interrupted download
    let repo = dir.path().join("models--org--model");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, content) in sharded_repo()
        .iter()
        .filter(|(name, _)| !name.contains("00002-of"))
    {
        std::fs::write(snapshot.join(name), content).unwrap();
    }
    let HubFault::Incomplete { missing, .. } =
        fault(resolve_with(&client, &id("org/model"), &offline, &mut ()))
    else {
        panic!()
    };
    assert_eq!(missing, ["model-00002-of-00003.safetensors"]);
    // online, only that one is fetched
    let found = resolve_with(&client, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    assert_eq!(found.downloaded, missing);

    let unreachable = Fake {
        reachable: false,
        ..Fake::new(dir.path(), Files::new())
    };
    let f = fault(resolve_with(
        &unreachable,
        &id("org/other"),
        &settings(dir.path()),
        &mut (),
    ));
    assert!(matches!(f, HubFault::Unreachable { .. }), "{f}");
}

#[test]
fn damaged_downloads_are_removed() {
    struct Damaging(Fake);
    impl HubClient for Damaging {
        fn list(&self, id: &HubId) -> Result<Listing> {
            self.0.list(id)
        }
        fn fetch(
            &self,
            id: &HubId,
            commit: &str,
            file: &RemoteFile,
            progress: &mut dyn Progress,
        ) -> Result<()> {
            self.0.fetch(id, commit, file, progress)?;
            let path = RepoCache::new(&self.0.cache, id)
                .snapshot(commit)
                .join(&file.name);
            if file.name.contains("00002-of") {
                let mut content = std::fs::read(&path).unwrap();
                content[200] ^= 1;
                std::fs::write(&path, content).unwrap();
            }
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let client = Damaging(Fake::new(dir.path(), sharded_repo()));
    let f = fault(resolve_with(
        &client,
        &id("org/model"),
        &settings(dir.path()),
        &mut (),
    ));
    assert!(
        matches!(&f, HubFault::Corrupt { file } if file.contains("00002-of")),
        "{f}"
    );
    client.0.fetched();
    let found = resolve_with(&client.0, &id("org/model"), &settings(dir.path()), &mut ()).unwrap();
    assert_eq!(
        client.0.fetched(),
        [
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors"
        ]
    );
    fixtures::assert_holds(
        checkpoint_dir::open(found.folder).unwrap().source.as_ref(),
        "sharded",
    );
}

#[test]
fn repositories_without_weights_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::from([("README.md".into(), vec![1])]);
    let f = fault(resolve_with(
        &Fake::new(dir.path(), files),
        &id("org/empty"),
        &settings(dir.path()),
        &mut (),
    ));
    assert!(matches!(f, HubFault::NoWeights), "{f}");
    let mut files = sharded_repo();
    files.remove("model-00003-of-00003.safetensors");
    let f = fault(resolve_with(
        &Fake::new(dir.path(), files),
        &id("org/half"),
        &settings(dir.path()),
        &mut (),
    ));
    assert!(
        matches!(&f, HubFault::NoSuchFile(name) if name.contains("00003-of")),
        "{f}"
    );
}
