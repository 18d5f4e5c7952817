//! Several ranks fill one store, or stores apart; one is stopped, one fails.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use blip2_model::backend::Flex;
use burn::tensor::Tensor;

use super::*;
use crate::distributed::local::{self, Local};
use crate::distributed::{Collective, CollectiveError};
use crate::run::Interrupt;
use crate::stage::testing::{encoder, vision};

const COUNT: usize = 12;

/// One loader's batch between two meetings, and no waiting for other machines.
const STEPS: Pace = Pace {
    round: Duration::ZERO,
    patience: Duration::ZERO,
};

/// Twelve pictures, named by two data sets: every key comes twice.
struct Bench {
    folder: tempfile::TempDir,
    recipe: Recipe,
}

impl Bench {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let row = |i| format!("{{\"image\":\"{i}.png\",\"caption\":\"picture {i}\"}}\n");
        let rows: String = (0..COUNT).map(row).collect();
        let data = folder.path().join("captions.jsonl");
        std::fs::write(&data, rows).unwrap();
        let set = format!("[[data.train]]\npath = \"{}\"\n", data.display());
        let text = format!(
            "stage = \"stage1\"\n[model]\nbase = \"x/y\"\n[data]\nvis_processor = \"blip_image_eval\"\n{more}\n{set}{set}[schedule]\nmax_iters = 3\n[train]\nbatch_size = 2\n"
        );
        let recipe = Recipe::parse(&text, "test", &[]).unwrap();
        let bench = Self { folder, recipe };
        (0..COUNT).for_each(|i| bench.draw(i));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn draw(&self, i: usize) {
        let colour = |x, y| image::Rgb([20 * i as u8, 30 * x as u8, 30 * y as u8]);
        let picture = image::RgbImage::from_fn(8, 8, colour);
        picture.save(self.path(&format!("{i}.png"))).unwrap();
    }

    fn spoil(&self, i: usize) {
        std::fs::write(self.path(&format!("{i}.png")), "no picture").unwrap();
    }

    fn rank(
        &self,
        pace: Pace,
        store: &str,
        collective: &dyn Collective<Flex>,
        interrupt: Interrupt,
    ) -> Result<Option<FeatureStore>, RecipeError> {
        let device = Default::default();
        let env = Environment {
            folder: self.path("run"),
            collective,
            interrupt,
            dry_run: false,
            show: Show::Nothing,
        };
        let (folder, encoder) = (self.path(store), encoder(&device));
        super::store(&self.recipe, &folder, &vision(), &encoder, &device, &env, pace)
    }

    /// The stores as the ranks, each with a folder by this name, open them.
    fn fill(&self, pace: Pace, stores: &[&str]) -> Vec<FeatureStore> {
        let opened = local::try_run(stores.len(), |me| {
            self.rank(pace, stores[rank(me)], me, Interrupt::new())
        });
        opened.unwrap().into_iter().map(Option::unwrap).collect()
    }

    /// Keys in each index of a store.
    fn listed(&self, store: &str) -> BTreeMap<String, Vec<String>> {
        let mut listed = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(self.path(store)) else {
            return listed;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("index") {
                let index: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let shards = index["shards"].as_array().unwrap().iter();
                let keys = shards.flat_map(|shard| shard["keys"].as_array().unwrap());
                let keys = keys.map(|key| key.as_str().unwrap().to_owned()).collect();
                listed.insert(name, keys);
            }
        }
        listed
    }

    /// All keys, each once however many indices there are.
    fn keys(&self, store: &str) -> Vec<String> {
        let all: Vec<String> = self.listed(store).into_values().flatten().collect();
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "a key was computed twice: {all:?}");
        all
    }
}

fn rank(me: &Local) -> usize {
    Collective::<Flex>::rank(me)
}

fn bits(store: &FeatureStore, key: &str) -> Vec<u8> {
    match store.images(&[key.into()]).unwrap() {
        Images::Features(data) => data.as_bytes().to_vec(),
        Images::Pixels(_) => unreachable!(),
    }
}

#[test]
fn three_ranks_compute_every_picture_once_and_as_one_rank_does() {
    let bench = Bench::new("");
    let one = bench.fill(Pace::default(), &["one"]).remove(0);
    let three = bench.fill(Pace::default(), &["three"; 3]);
    let keys = bench.keys("three");
    assert_eq!((keys.len(), one.len()), (COUNT, COUNT));
    for (name, keys) in bench.listed("three") {
        let owner = |key: &String| hash(key) % 3;
        assert!(
            keys.iter()
                .all(|key| format!("index-rank-{}.json", owner(key)) == name)
        );
    }
    for store in &three {
        assert_eq!(store.len(), COUNT);
        keys.iter()
            .for_each(|key| assert_eq!(bits(store, key), bits(&one, key), "{key}"));
    }
    // nothing is left for another number of ranks
    let listed = bench.listed("three");
    assert_eq!(bench.fill(Pace::default(), &["three"; 2])[1].len(), COUNT);
    assert_eq!(bench.listed("three"), listed);
}

/// A picture that cannot be read is looked at by its rank alone, and nobody waits for it to appear.
#[test]
fn three_ranks_go_on_behind_a_store_of_one() {
    let bench = Bench::new("");
    (0..COUNT / 2).for_each(|i| bench.spoil(i));
    bench.fill(STEPS, &["store"]);
    let first = bench.listed("store");
    assert_eq!(bench.keys("store").len(), COUNT / 2);
    (1..COUNT / 2).for_each(|i| bench.draw(i));
    // under the name of a rank that there is not now
    std::fs::rename(
        bench.path("store/index-rank-0.json"),
        bench.path("store/index-rank-7.json"),
    )
    .unwrap();
    let started = Instant::now();
    let stores = bench.fill(Pace::default(), &["store"; 3]);
    assert!(started.elapsed() < Pace::default().patience / 2);
    assert!(stores.iter().all(|store| store.len() == COUNT - 1));
    assert_eq!(bench.keys("store").len(), COUNT - 1);
    assert_eq!(
        bench.listed("store")["index-rank-7.json"],
        first["index-rank-0.json"]
    );
}

/// Asks for a stop at one of its sums.
struct Stopping<'a> {
    inner: &'a Local,
    sums: Cell<usize>,
    at: usize,
    interrupt: Interrupt,
}

impl Collective<Flex> for Stopping<'_> {
    fn rank(&self) -> usize {
        rank(self.inner)
    }

    fn world_size(&self) -> usize {
        Collective::<Flex>::world_size(self.inner)
    }

    fn all_reduce_sum(&self, values: Tensor<Flex, 1>) -> Result<Tensor<Flex, 1>, CollectiveError> {
        self.sums.set(self.sums.get() + 1);
        if self.sums.get() == self.at {
            self.interrupt.request();
        }
        self.inner.all_reduce_sum(values)
    }
}

/// Each rank has a request of its own here, as processes have, and only one hears of it.
#[test]
fn a_stop_on_one_rank_stops_all_and_what_is_there_is_kept() {
    let bench = Bench::new("");
    let mut kept = Vec::new();
    // the first while keys are read, 24 samples in batches of two and the end of them; the others among the pictures
    for at in [1, 20, 20] {
        let ended = local::try_run(3, |me| {
            let interrupt = Interrupt::new();
            let collective = Stopping {
                inner: me,
                sums: Cell::new(0),
                at: if rank(me) == 1 { at } else { 0 },
                interrupt: interrupt.clone(),
            };
            let ended = bench.rank(STEPS, "store", &collective, interrupt)?;
            Ok::<_, RecipeError>(ended.is_none())
        });
        assert_eq!(ended.unwrap(), [true; 3]);
        kept.push(bench.keys("store"));
    }
    assert!(kept[0].is_empty());
    assert!(!kept[1].is_empty() && kept[1].len() < COUNT, "{}", kept[1].len());
    assert!(kept[1].iter().all(|key| kept[2].contains(key)));
    let stores = bench.fill(STEPS, &["store"; 3]);
    assert!(stores.iter().all(|store| store.len() == COUNT));
    assert_eq!(bench.keys("store").len(), COUNT);
}

/// Only the rank whose picture it is meets the error; the others neither wait nor lose what they have.
#[test]
fn a_rank_that_fails_ends_the_others() {
    let bench = Bench::new("errors = { allowed = 0, share = 0.0 }");
    let owner = |i: &usize| hash(&format!("{}#{i}", bench.path("captions.jsonl").display())) % 3;
    let last = |rank| (0..COUNT).rfind(|i| owner(i) == rank).unwrap_or(0);
    // nobody is done before this one is read
    let spoilt = (0..3).map(last).min().unwrap();
    bench.spoil(spoilt);
    let ended = local::run(3, |me| {
        bench.rank(STEPS, "store", me, Interrupt::new()).map(|_| ())
    });
    let told: Vec<String> = ended.into_iter().map(|e| e.unwrap_err().to_string()).collect();
    for (rank, text) in told.iter().enumerate() {
        let word = if rank as u64 == owner(&spoilt) {
            "captions.jsonl"
        } else {
            "is gone"
        };
        assert!(text.contains(word), "{told:?}");
    }
    // six and more on three ranks fill a batch of two on one of them
    assert!(spoilt < 7 || !bench.keys("store").is_empty());
    bench.draw(spoilt);
    assert_eq!(bench.fill(STEPS, &["store"; 3])[0].len(), COUNT);
    assert_eq!(bench.keys("store").len(), COUNT);
}

/// Two ranks on one machine and one on another, without a folder in common: every folder ends complete, and the ranks
/// that see the same one still compute nothing twice.
#[test]
fn ranks_without_a_common_folder_complete_their_own() {
    let bench = Bench::new("");
    let stores = bench.fill(STEPS, &["here", "here", "there"]);
    assert!(stores.iter().all(|store| store.len() == COUNT));
    assert_eq!(bench.keys("here").len(), COUNT);
    assert_eq!(bench.keys("there").len(), COUNT);
    assert_eq!(bench.listed("there").len(), 1);
    // one of two folders is complete before the start
    let stores = bench.fill(STEPS, &["there", "empty"]);
    assert!(stores.iter().all(|store| store.len() == COUNT));
    assert_eq!(bench.keys("empty").len(), COUNT);
}
