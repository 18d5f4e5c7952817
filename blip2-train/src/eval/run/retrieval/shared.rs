//! Embeddings that the processes of an evaluation share: each writes a file of its own and reads those of the others.
//!
//! They are divided as pictures are ([`Share`]). A process that is done with its own goes on with what others have not
//! embedded yet, from the end of it, half of what is left at a time: nobody waits, neither for a slower process nor for
//! one that was never started, and two that work on one part meet in its middle.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::store::{Part, Store, read_from};
use crate::eval::EvalError;
use crate::eval::results;
use crate::eval::run::folder::Share;

/// Batches that a process takes before it looks at what others have done, at the least.
const LEAST_BATCHES: usize = 8;

fn path(folder: &Path, name: &str, rank: usize) -> PathBuf {
    folder.join(format!("{name}.{rank}.bin"))
}

/// See the module documentation.
pub(super) struct Shared {
    folder: PathBuf,
    name: &'static str,
    share: Share,
    own: Store,
    /// Bytes read of the others' files, by rank.
    read: HashMap<usize, u64>,
    parts: Vec<Part>,
    known: HashSet<usize>,
}

impl Shared {
    /// Opens this process' `name.RANK.bin` and reads it and those of the others.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn open(folder: &Path, name: &'static str, share: Share) -> Result<Self, EvalError> {
        let (own, parts) = Store::open(&path(folder, name, share.rank))?;
        let mut shared = Self {
            folder: folder.to_path_buf(),
            name,
            share,
            own,
            read: HashMap::new(),
            parts: Vec::new(),
            known: HashSet::new(),
        };
        parts.into_iter().for_each(|part| shared.learn(part));
        shared.refresh()?;
        Ok(shared)
    }

    /// Reads what the others have written since.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn refresh(&mut self) -> Result<(), EvalError> {
        // in the order of ranks: the same whatever the order of the directory
        for rank in results::ranks(&self.folder, self.name, "bin")? {
            if rank == self.share.rank {
                continue;
            }
            let read = self.read.entry(rank).or_default();
            let (parts, end) = read_from(&path(&self.folder, self.name, rank), *read)?;
            *read = end;
            parts.into_iter().for_each(|part| self.learn(part));
        }
        Ok(())
    }

    /// Adds a batch to this process' file.
    ///
    /// # Errors
    /// [`EvalError::File`].
    pub fn append(&mut self, part: Part) -> Result<(), EvalError> {
        self.own.append(&part)?;
        self.learn(part);
        Ok(())
    }

    /// Keeps what is not known yet.
    fn learn(&mut self, part: Part) {
        let part = part.without(&self.known);
        self.known.extend(&part.at);
        if !part.at.is_empty() {
            self.parts.push(part);
        }
    }

    /// Those of `wanted` that no process has embedded, in the same order.
    pub fn missing(&self, wanted: impl IntoIterator<Item = usize>) -> Vec<usize> {
        wanted.into_iter().filter(|at| !self.known.contains(at)).collect()
    }

    /// What this process does next of `missing` (ascending); nothing if that is empty.
    pub fn next(&self, missing: &[usize], batch: usize) -> Vec<usize> {
        if self.share.world <= 1 {
            return missing.to_vec();
        }
        let (mine, others): (Vec<usize>, Vec<usize>) = missing.iter().partition(|&&at| self.share.has(at));
        let some = |all: &[usize]| all.len().div_ceil(2).max(LEAST_BATCHES * batch).min(all.len());
        match mine.is_empty() {
            false => mine[..some(&mine)].to_vec(),
            true => others[others.len() - some(&others)..].to_vec(),
        }
    }

    /// All that is known, in the batches it was made in.
    pub fn into_parts(self) -> Vec<Part> {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, rank: usize, world: usize) -> Shared {
        Shared::open(folder, "texts", Share { rank, world }).unwrap()
    }

    fn part(at: &[usize]) -> Part {
        let at = at.to_vec();
        let values = at.iter().flat_map(|&at| [at as f32, -(at as f32)]).collect();
        Part { at, values }
    }

    /// Embeds what `shared` would do next; whether there was something.
    fn step(shared: &mut Shared, total: usize) -> bool {
        let next = shared.next(&shared.missing(0..total), 2);
        next.chunks(2).for_each(|at| shared.append(part(at)).unwrap());
        !next.is_empty()
    }

    #[test]
    fn whatever_the_order_each_is_embedded_once_and_all_processes_know_all() {
        const TOTAL: usize = 1000;
        for order in [[0, 1, 2], [2, 1, 0], [0, 0, 1], [1, 1, 1]] {
            let folder = tempfile::tempdir().unwrap();
            let mut all: Vec<Shared> = (0..3).map(|rank| open(folder.path(), rank, 3)).collect();
            let mut turns = order.iter().cycle();
            while turns.by_ref().take(3).any(|&rank| {
                all[rank].refresh().unwrap();
                step(&mut all[rank], TOTAL)
            }) {}
            for mut shared in all {
                shared.refresh().unwrap();
                assert!(shared.missing(0..TOTAL).is_empty(), "{order:?}");
                let known: usize = shared.into_parts().iter().map(|part| part.at.len()).sum();
                assert_eq!(known, TOTAL, "{order:?}");
            }
            let written = |rank| {
                let path = folder.path().join(format!("texts.{rank}.bin"));
                let parts = read_from(&path, 0).unwrap().0;
                parts.iter().map(|part| part.at.len()).sum::<usize>()
            };
            let embedded: usize = (0..3).map(written).sum();
            assert_eq!(embedded, TOTAL, "{order:?}: something was embedded twice");
        }
    }

    #[test]
    fn a_batch_that_two_have_made_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (open(folder.path(), 0, 2), open(folder.path(), 1, 2));
        one.append(part(&[1, 2, 3])).unwrap();
        two.append(part(&[3, 4])).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.into_parts(), [part(&[1, 2, 3]), part(&[4])]);
        assert_eq!(
            open(folder.path(), 0, 1).into_parts(),
            [part(&[1, 2, 3]), part(&[4])]
        );
    }

    #[test]
    fn a_record_that_is_being_written_is_read_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (mut one, mut two) = (open(folder.path(), 0, 2), open(folder.path(), 1, 2));
        two.append(part(&[1])).unwrap();
        two.append(part(&[3])).unwrap();
        let path = folder.path().join("texts.1.bin");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.missing(0..4), [0, 2, 3]);
        std::fs::write(&path, &whole).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.missing(0..4), [0, 2]);
    }
}
