//! Files for the metrics that are not computed here: METEOR and SPICE.
//!
//! METEOR 1.5 scores by tables: function words, a WordNet extract and a paraphrase table of 60 MB made from parallel
//! corpora. pycocoevalcap ships them without a licence (its metadata says `UNKNOWN`, neither the jar nor the paraphrase
//! file holds one), so they cannot be passed on with this program, and METEOR without them is another metric. SPICE
//! needs a dependency parser with its models. Both therefore run outside: the two files below are what the COCO tools read.
//!
//! ```python
//! from pycocotools.coco import COCO
//! from pycocoevalcap.eval import COCOEvalCap
//! coco = COCO("references.json")
//! evaluation = COCOEvalCap(coco, coco.loadRes("predictions.json"))
//! evaluation.evaluate()
//! ```

use serde::Serialize;

use super::error::EvalError;
use super::results::{Caption, Id};

/// References as a COCO annotation file: `images` and `annotations`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct References {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Image {
    id: Id,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Annotation {
    id: usize,
    image_id: Id,
    caption: String,
}

/// The annotation file for items in the order of the predictions.
pub fn references<'a>(items: impl IntoIterator<Item = (&'a Id, &'a [String])>) -> References {
    let mut file = References {
        images: Vec::new(),
        annotations: Vec::new(),
    };
    for (id, captions) in items {
        file.images.push(Image { id: id.clone() });
        for caption in captions {
            let number = file.annotations.len() + 1;
            file.annotations.push(Annotation {
                id: number,
                image_id: id.clone(),
                caption: caption.clone(),
            });
        }
    }
    file
}

/// One item of the input file of SPICE's own program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpiceItem {
    image_id: Id,
    test: String,
    refs: Vec<String>,
}

/// Input of `java -jar spice-1.0.jar FILE`: captions as they are, it tokenizes itself.
///
/// # Errors
/// [`EvalError::Lengths`] if there are not as many lists of references as predictions.
pub fn spice(predictions: &[Caption], references: &[Vec<String>]) -> Result<Vec<SpiceItem>, EvalError> {
    if predictions.len() != references.len() {
        return Err(EvalError::Lengths {
            candidates: predictions.len(),
            references: references.len(),
        });
    }
    let item = |(prediction, refs): (&Caption, &Vec<String>)| SpiceItem {
        image_id: prediction.image_id.clone(),
        test: prediction.caption.clone(),
        refs: refs.clone(),
    };
    Ok(predictions.iter().zip(references).map(item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let id = Id::Number(7);
        let refs = vec!["a cat".to_string(), "the cat".to_string()];
        let json = serde_json::to_value(references([(&id, refs.as_slice())])).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "images": [{"id": 7}],
                "annotations": [
                    {"id": 1, "image_id": 7, "caption": "a cat"},
                    {"id": 2, "image_id": 7, "caption": "the cat"},
                ],
            })
        );
        let predictions = [Caption {
            image_id: id,
            caption: "cat".into(),
        }];
        let json = serde_json::to_value(spice(&predictions, &[refs]).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{"image_id": 7, "test": "cat", "refs": ["a cat", "the cat"]}])
        );
        assert!(spice(&predictions, &[]).is_err());
    }
}
