//! Caption and question cleaning, and the prompts of each checkpoint family.
//!
//! Mirrors LAVIS's `blip_caption` and `blip_question` processors, character class for character class of
//! Python's `re` and `str`.

/// Words kept by both cleaners unless told otherwise.
pub const MAX_WORDS: usize = 50;

fn is_dropped(c: char) -> bool {
    matches!(c, '.' | '!' | '"' | '(' | ')' | '*' | '#' | ':' | ';' | '~')
}

/// Python's `\s`: Unicode white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// First `max_words` pieces between single spaces; empty pieces count as words.
fn first_words(text: &str, max_words: usize) -> String {
    text.split(' ').take(max_words).collect::<Vec<_>>().join(" ")
}

/// Cleans a caption for training: lower case, `. ! " ( ) * # : ; ~` become spaces, runs of white space one
/// space, both ends trimmed, at most `max_words` words; then `prompt` goes in front.
pub fn blip_caption(caption: &str, prompt: &str, max_words: usize) -> String {
    let spaced = caption.to_lowercase().replace(is_dropped, " ");
    let mut text = String::with_capacity(spaced.len());
    let mut run = String::new();
    for c in spaced.chars().chain(std::iter::once('\0')) {
        if is_space(c) {
            run.push(c);
            continue;
        }
        // a lone tab or line feed stays what it is
        match run.chars().count() {
            0 | 1 => text.push_str(&run),
            _ => text.push(' '),
        }
        run.clear();
        text.push(c);
    }
    text.pop();
    let text = text.trim_end_matches('\n').trim_matches(' ');
    format!("{prompt}{}", first_words(text, max_words))
}

/// Cleans a question: lower case, `. ! " ( ) * # : ; ~` deleted, spaces at the end cut, at most `max_words` words.
pub fn blip_question(question: &str, max_words: usize) -> String {
    let text = question.to_lowercase().replace(is_dropped, "");
    first_words(text.trim_end_matches(' '), max_words)
}

/// The language-model family of a checkpoint, as far as prompts depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptFamily {
    /// OPT.
    Opt,
    /// T5 and FlanT5.
    T5,
}

/// Prompts that a family was published with; `{}` stands for the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompts {
    /// In front of a caption, when generation is asked to complete one.
    pub caption: &'static str,
    /// Zero-shot questions, as in the paper.
    pub question: &'static str,
    /// Questions, as in LAVIS's evaluation recipes.
    pub question_lavis: &'static str,
    /// One finished turn of a conversation; the second `{}` stands for the answer.
    pub turn: &'static str,
    /// The open turn of a conversation.
    pub open_turn: &'static str,
}

const OPT: Prompts = Prompts {
    caption: "a photo of",
    question: "Question: {} Answer:",
    question_lavis: "Question: {} Short answer:",
    turn: "Question: {} Answer: {}.",
    open_turn: "Question: {} Answer:",
};

const T5: Prompts = Prompts {
    question: "Question: {} Short answer:",
    ..OPT
};

impl PromptFamily {
    /// The prompts of this family.
    pub fn prompts(self) -> &'static Prompts {
        match self {
            PromptFamily::Opt => &OPT,
            PromptFamily::T5 => &T5,
        }
    }
}

/// Puts `values` where the template says `{}`, left to right; braces inside the values stay as they are.
pub fn fill_template(template: &str, values: &[&str]) -> String {
    let mut values = values.iter();
    let mut out = String::with_capacity(template.len());
    let mut pieces = template.split("{}");
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.push_str(values.next().copied().unwrap_or("{}"));
        out.push_str(piece);
    }
    out
}

impl Prompts {
    /// The prompt of a conversation: finished turns of (question, answer), then the question now asked.
    pub fn conversation(&self, turns: &[(&str, &str)], question: &str) -> String {
        let past = turns
            .iter()
            .map(|(q, a)| fill_template(self.turn, &[q, a.trim_end_matches('.')]));
        past.chain([fill_template(self.open_turn, &[question])])
            .collect::<Vec<_>>()
            .join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::json;
    use super::*;

    #[test]
    fn cleaning_equals_python() {
        let cases = json("text.json");
        for case in cases.as_array().unwrap() {
            let text = |i: usize| case[i].as_str().unwrap();
            let words = case[1].as_u64().unwrap() as usize;
            assert_eq!(blip_caption(text(0), "a photo of ", words), text(2), "{case}");
            assert_eq!(blip_question(text(0), words), text(3), "{case}");
        }
        assert!(cases.as_array().unwrap().len() > 300);
    }

    #[test]
    fn prompts_of_each_family() {
        let (opt, t5) = (PromptFamily::Opt.prompts(), PromptFamily::T5.prompts());
        assert_eq!(fill_template(opt.question, &["why?"]), "Question: why? Answer:");
        assert_eq!(
            fill_template(t5.question, &["why?"]),
            "Question: why? Short answer:"
        );
        assert_eq!(fill_template("{} and {}", &["{}", "b"]), "{} and b");
        assert_eq!(
            t5.conversation(&[("which city is this?", "singapore")], "why?"),
            "Question: which city is this? Answer: singapore. Question: why? Answer:"
        );
        assert_eq!(opt.conversation(&[], "why?"), "Question: why? Answer:");
    }
}
