//! ROUGE-L (Lin 2004) as pycocoevalcap: best precision and best recall over the references, each by the longest common
//! subsequence, combined with beta 1.2.

const BETA_SQUARED: f64 = 1.2 * 1.2;

/// Score of a tokenized candidate against its tokenized references; 0 without references.
///
/// Words are parted at single blanks, as the original does: an empty caption is one empty word.
pub fn rouge_l<S: AsRef<str>>(candidate: &str, references: &[S]) -> f64 {
    let candidate: Vec<&str> = candidate.split(' ').collect();
    let (mut precision, mut recall) = (0.0f64, 0.0f64);
    for reference in references {
        let reference: Vec<&str> = reference.as_ref().split(' ').collect();
        let common = common_subsequence(&candidate, &reference) as f64;
        precision = precision.max(common / candidate.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA_SQUARED) * precision * recall / (recall + BETA_SQUARED * precision)
}

/// Length of the longest common subsequence.
fn common_subsequence(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsequence() {
        let split = |s: &'static str| s.split(' ').collect::<Vec<_>>();
        assert_eq!(common_subsequence(&split("a b c d"), &split("b x d y")), 2);
        assert_eq!(common_subsequence(&split("a"), &split("b")), 0);
    }

    #[test]
    fn best_precision_and_best_recall_may_come_from_two_references() {
        assert_eq!(rouge_l("a b", &["a b"]), 1.0);
        assert_eq!(rouge_l("a b", &["c"]), 0.0);
        let expected = {
            let (p, r) = (1.0, 1.0); // precision from the long reference, recall from the short one
            (1.0 + BETA_SQUARED) * p * r / (r + BETA_SQUARED * p)
        };
        assert_eq!(rouge_l("a b", &["a x b y z", "a"]), expected);
        assert_eq!(rouge_l("", &[""]), 1.0, "two empty captions share the empty word");
    }
}
