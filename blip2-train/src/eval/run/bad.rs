//! How many samples of a data set may be bad before an evaluation stops: figures over what is left are those of another
//! data set.

use super::RunError;
use super::pictures::Pictures;

/// So many samples may be bad whatever their share: of a small set a few are soon a large one.
pub const ALLOWED: usize = 5;

/// The share above which an evaluation stops, unless it is told another.
pub const MAX_BAD: f64 = 0.01;

/// The error if `share` is none.
pub fn check_share(share: f64) -> Result<(), RunError> {
    match (0.0..=1.0).contains(&share) {
        true => Ok(()),
        false => Err(RunError::Setting {
            name: "--max-bad",
            value: share.to_string(),
            remedy: "give a share from 0 to 1",
        }),
    }
}

/// The error if more than [`ALLOWED`] samples and more than the share `most` of them are bad: those without usable text,
/// and `unreadable` of the pictures. `last` says why the last one is.
pub fn check(
    pictures: &Pictures,
    unreadable: usize,
    most: f64,
    last: impl FnOnce() -> String,
) -> Result<(), RunError> {
    let counts = Counts {
        texts: pictures.skipped.len(),
        samples: pictures.samples(),
        unreadable,
        pictures: pictures.list.len(),
    };
    match counts.too_many(most) {
        false => Ok(()),
        true => Err(RunError::TooManyBad {
            texts: counts.texts,
            samples: counts.samples,
            unreadable: counts.unreadable,
            pictures: counts.pictures,
            percent: 100.0 * counts.share(),
            most,
            last: last(),
        }),
    }
}

struct Counts {
    /// Samples without usable text.
    texts: usize,
    samples: usize,
    /// Pictures that cannot be read.
    unreadable: usize,
    pictures: usize,
}

impl Counts {
    fn share(&self) -> f64 {
        self.texts as f64 / self.samples.max(1) as f64 + self.unreadable as f64 / self.pictures.max(1) as f64
    }

    fn too_many(&self, most: f64) -> bool {
        self.texts + self.unreadable > ALLOWED && self.share() > most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_may_always_be_bad_and_then_the_share_counts() {
        let too_many = |texts, unreadable, all, most| {
            let counts = Counts {
                texts,
                samples: all,
                unreadable,
                pictures: all,
            };
            counts.too_many(most)
        };
        assert!(!too_many(2, 3, 7, MAX_BAD), "of a small set five may be bad");
        assert!(too_many(3, 3, 7, MAX_BAD));
        assert!(!too_many(5, 5, 1000, MAX_BAD));
        assert!(too_many(5, 6, 1000, MAX_BAD));
        assert!(!too_many(50, 50, 100, 1.0));
        assert!(too_many(0, 6, 100, 0.0));
        assert!(check_share(1.5).is_err() && check_share(f64::NAN).is_err() && check_share(0.0).is_ok());
    }
}
