//! The real client against a server on the loopback interface.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::super::super::{checkpoint_dir, fixtures};
use super::super::*;
use super::{COMMIT, Files, etag, fault, id, settings, sharded_repo};

/// What the server is told and what it does.
#[derive(Default)]
struct Served {
    files: Files,
    /// name -> times that its body is cut in the middle
    cuts: BTreeMap<String, usize>,
    /// path, `Range`, `Authorization`
    log: Vec<(String, String, String)>,
    token: Option<String>,
}

/// A hub on the loopback interface; ends with the process. Gives its address.
fn serve(served: &Arc<Mutex<Served>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = served.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &mut served.lock().unwrap());
        }
    });
    address
}

fn answer(mut stream: TcpStream, served: &mut Served) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(|line| line.ok())
        .take_while(|line| !line.is_empty());
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.collect();
    let header = |name: &str| {
        let value = headers
            .iter()
            .filter_map(|h| h.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        value.map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let (range, auth) = (header("range"), header("authorization"));
    served.log.push((path.clone(), range.clone(), auth.clone()));

    let status = |code: &str| format!("HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    if served
        .token
        .as_ref()
        .is_some_and(|token| auth != format!("Bearer {token}"))
    {
        let _ = stream.write_all(status("401 Unauthorized").as_bytes());
    } else if path.starts_with("/api/models/org/model/revision/main") {
        let siblings: Vec<_> = served
            .files
            .iter()
            .map(|(name, content)| serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": "00", "lfs": { "sha256": etag(content) } }))
            .collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    } else if let Some((name, content)) = path
        .strip_prefix(&format!("/org/model/resolve/{COMMIT}/"))
        .and_then(|name| served.files.get_key_value(name))
    {
        let (start, end) = range
            .strip_prefix("bytes=")
            .and_then(|r| r.split_once('-'))
            .unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(content.len(), |last: usize| last + 1);
        if start >= content.len() {
            let _ = stream.write_all(status("416 Range Not Satisfiable").as_bytes());
            return;
        }
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            end - start,
            end - 1,
            content.len(),
            etag(content)
        );
        let mut stop = end;
        if let Some(cuts) = served.cuts.get_mut(name)
            && *cuts > 0
            && end - start > 1
        {
            *cuts -= 1;
            stop = start + (end - start) / 2;
        }
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&content[start..stop]));
    } else {
        let _ = stream.write_all(status("404 Not Found").as_bytes());
    }
}

#[derive(Default)]
struct Recorder(Vec<(String, u64, u64)>);

impl Progress for Recorder {
    fn begin(&mut self, file: &str, total: u64) {
        self.0.retain(|(name, ..)| name != file);
        self.0.push((file.to_owned(), total, 0));
    }
    fn advance(&mut self, bytes: u64) {
        self.0.last_mut().unwrap().2 += bytes;
    }
}

#[test]
fn the_real_client_downloads_resumes_and_sends_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let big = "model-00001-of-00003.safetensors";
    let served = Arc::new(Mutex::new(Served {
        files: sharded_repo(),
        cuts: [(big.to_owned(), 1)].into(),
        token: Some("secret".into()),
        ..Served::default()
    }));
    let settings = HubSettings {
        endpoint: serve(&served),
        token: Some("secret".into()),
        ..settings(dir.path())
    };
    let size = served.lock().unwrap().files[big].len();

    // without retries the first run ends at the cut
    let err = resolve(&id("org/model"), &settings, &mut ()).unwrap_err();
    assert!(
        matches!(&err, WeightsError::Hub { fault: HubFault::Interrupted { file, .. }, .. } if file == big),
        "{err}"
    );
    assert!(err.to_string().contains("run again to resume"), "{err}");

    // the next run asks for the rest only
    served.lock().unwrap().log.clear();
    let mut progress = Recorder::default();
    let snapshot = resolve(&id("org/model"), &settings, &mut progress).unwrap();
    let ranges: Vec<String> = served
        .lock()
        .unwrap()
        .log
        .iter()
        .filter(|(path, ..)| path.ends_with(big))
        .map(|(_, range, _)| range.clone())
        .collect();
    assert_eq!(ranges, ["bytes=0-0".to_owned(), format!("bytes={}-", size / 2)]);
    assert!(
        progress.0.iter().all(|(_, total, done)| total == done),
        "{:?}",
        progress.0
    );
    fixtures::assert_holds(
        checkpoint_dir::open(&snapshot.folder).unwrap().source.as_ref(),
        "sharded",
    );
    assert!(!snapshot.folder.join("README.md").exists());

    // everything is there: one request, for the listing
    served.lock().unwrap().log.clear();
    assert!(
        resolve(&id("org/model"), &settings, &mut ())
            .unwrap()
            .downloaded
            .is_empty()
    );
    assert_eq!(served.lock().unwrap().log.len(), 1);

    // the layout of huggingface_hub
    let repo = dir.path().join("models--org--model");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(std::fs::read_dir(repo.join("refs")).unwrap().count(), 1);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(snapshot.folder.join(big)).unwrap(),
        Path::new("../../blobs").join(etag(&served.lock().unwrap().files[big]))
    );
}

#[test]
fn the_real_client_retries_within_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let served = Arc::new(Mutex::new(Served {
        files: sharded_repo(),
        cuts: [("config.json".to_owned(), 2)].into(),
        ..Served::default()
    }));
    let settings = HubSettings {
        endpoint: serve(&served),
        retries: 3,
        ..settings(dir.path())
    };
    let snapshot = resolve(&id("org/model"), &settings, &mut ()).unwrap();
    fixtures::assert_holds(
        checkpoint_dir::open(&snapshot.folder).unwrap().source.as_ref(),
        "sharded",
    );
}

#[test]
fn a_download_that_was_complete_but_not_named_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let served = Arc::new(Mutex::new(Served {
        files: sharded_repo(),
        ..Served::default()
    }));
    let settings = HubSettings {
        endpoint: serve(&served),
        ..settings(dir.path())
    };
    let blobs = dir.path().join("models--org--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    for (name, content) in &served.lock().unwrap().files {
        let mut content = content.clone();
        let part = blobs.join(etag(&content)).with_extension("part");
        // one is complete but damaged
        if name == "config.json" {
            content[0] = b'?';
        }
        std::fs::write(part, content).unwrap();
    }
    let snapshot = resolve(&id("org/model"), &settings, &mut ()).unwrap();
    assert_eq!(snapshot.downloaded, ["config.json"]);
    fixtures::assert_holds(
        checkpoint_dir::open(&snapshot.folder).unwrap().source.as_ref(),
        "sharded",
    );
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let served = Arc::new(Mutex::new(Served {
        files: sharded_repo(),
        token: Some("secret".into()),
        ..Served::default()
    }));
    let settings = HubSettings {
        endpoint: serve(&served),
        ..settings(dir.path())
    };
    let err = resolve(&id("org/model"), &settings, &mut ()).unwrap_err();
    assert!(err.to_string().contains("HF_TOKEN"), "{err}");
    served.lock().unwrap().token = None;
    let f = fault(resolve(&id("org/nothing"), &settings, &mut ()));
    assert!(matches!(f, HubFault::NoSuchRepo), "{f}");
    // nobody listens on the discard port
    let settings = HubSettings {
        endpoint: "http://127.0.0.1:9".into(),
        ..settings
    };
    let f = fault(resolve(&id("org/model"), &settings, &mut ()));
    assert!(matches!(f, HubFault::Unreachable { .. }), "{f}");
}
