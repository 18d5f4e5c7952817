//! An error with its causes as one sentence for a person. Many messages quote their cause already, and many causes
//! begin with the thing that the message around them names; each is said once.

use std::error::Error;

/// `error: cause: cause of the cause`, without repetitions.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string().trim_end().to_string();
    // where the message of the innermost error that was added begins
    let mut last = 0;
    let mut next = error.source();
    while let Some(cause) = next {
        let message = cause.to_string();
        let message = message.trim();
        if message.starts_with(&text[last..]) {
            text.truncate(last);
            text.push_str(message);
        } else if !text.contains(message) {
            text.push_str(": ");
            last = text.len();
            text.push_str(message);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    fn said(messages: &[&'static str]) -> String {
        let stack = messages
            .iter()
            .rev()
            .fold(None, |inner, message| Some(Box::new(Layer(message, inner))));
        sentence(stack.expect("a message").as_ref())
    }

    #[test]
    fn each_message_is_said_once() {
        assert_eq!(said(&["a file", "is torn", "at 7"]), "a file: is torn: at 7");
        // transparent errors, and messages that quote their cause
        assert_eq!(said(&["a file: is torn", "is torn"]), "a file: is torn");
        assert_eq!(said(&["is torn", "is torn", "is torn"]), "is torn");
        // context that the cause names again
        assert_eq!(
            said(&["rank 1", "a file", "a file: is torn"]),
            "rank 1: a file: is torn"
        );
        assert_eq!(said(&["lines\n", "end\n"]), "lines: end");
    }
}
