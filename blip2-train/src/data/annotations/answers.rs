//! Answers from a file of their own: the official annotations of VQAv2 and OK-VQA, joined to questions by
//! `question_id`, whatever file the questions come from.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Entry;
use crate::data::sample::{DataError, Problem, weigh_answers};

#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: Value,
    answers: Vec<Given>,
    #[serde(default)]
    answer_type: Option<String>,
    #[serde(default)]
    question_type: Option<String>,
}

#[derive(Deserialize)]
struct Given {
    answer: String,
}

/// Gives each question the answers that `bytes` has for it; one without keeps its own. `path` is for messages.
///
/// # Errors
/// [`DataError::Json`]; [`DataError::Setting`] if no question is answered: the file belongs to other questions.
pub(super) fn join(
    entries: &mut [Result<Entry, Problem>],
    bytes: &[u8],
    path: &Path,
) -> Result<(), DataError> {
    let file: Annotations = serde_json::from_slice(bytes).map_err(|source| DataError::Json {
        path: path.to_owned(),
        source,
    })?;
    let mut notes: HashMap<String, Annotation> = HashMap::with_capacity(file.annotations.len());
    for note in file.annotations {
        let id = match &note.question_id {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        notes.insert(id, note);
    }
    let mut answered = 0;
    for question in entries
        .iter_mut()
        .flatten()
        .filter_map(|entry| entry.question.as_mut())
    {
        let Some(note) = question.id.as_ref().and_then(|id| notes.get(id)) else {
            continue;
        };
        let texts: Vec<&String> = note.answers.iter().map(|given| &given.answer).collect();
        question.answers = weigh_answers(&texts);
        question.answer_type.clone_from(&note.answer_type);
        question.question_type.clone_from(&note.question_type);
        answered += 1;
    }
    match answered {
        0 => Err(DataError::Setting {
            field: "answers",
            value: path.display().to_string(),
            remedy: "it answers none of the questions; give the annotations of the same split, whose question_id are those \
                     of the questions",
        }),
        _ => Ok(()),
    }
}
