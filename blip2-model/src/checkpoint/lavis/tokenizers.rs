//! Tokenizer files with the tokens that LAVIS adds in its code (`[DEC]`) or Hugging Face's BLIP-2 expects
//! (`<image>`), as transformers would write them.

use serde_json::{Map, Value, json};

use crate::checkpoint::Companions;

/// The files with one more special token, which gets the id `id`.
pub fn with_special_token(files: Companions, prefix: &str, token: &str, id: u32) -> Companions {
    let flags = json!({
        "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
        "special": true,
    });
    let mut files = files;
    if let Some(mut tokenizer) = object(&files, &format!("{prefix}tokenizer.json")) {
        if let Some(Value::Array(added)) = tokenizer.get_mut("added_tokens") {
            let mut entry = Map::from_iter([("id".to_string(), Value::from(id))]);
            if let Value::Object(flags) = flags.clone() {
                entry.extend(flags);
            }
            added.push(Value::Object(entry));
        }
        files = files.with_text(format!("{prefix}tokenizer.json"), text(tokenizer));
    }
    let name = format!("{prefix}tokenizer_config.json");
    if let Some(mut config) = object(&files, &name) {
        if let Some(Value::Object(added)) = config.get_mut("added_tokens_decoder") {
            added.insert(id.to_string(), flags);
        }
        files = files.with_text(name, text(config));
    }
    let name = format!("{prefix}added_tokens.json");
    let mut added = object(&files, &name).unwrap_or_default();
    added.insert(token.to_string(), id.into());
    files.with_text(name, text(added))
}

/// The files with a field of `tokenizer_config.json` set; the file is made if it is not there.
pub fn with_setting(files: Companions, prefix: &str, field: &str, value: &str) -> Companions {
    let name = format!("{prefix}tokenizer_config.json");
    let mut config = object(&files, &name).unwrap_or_default();
    config.insert(field.to_string(), value.into());
    files.with_text(name, text(config))
}

fn object(files: &Companions, name: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(&files.text(name)?).ok()
}

fn text(object: Map<String, Value>) -> String {
    serde_json::to_string_pretty(&Value::Object(object)).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_added_wherever_tokens_are_listed() {
        let files = Companions::default()
            .with_text("q/tokenizer.json", r#"{"added_tokens": [], "model": {}}"#)
            .with_text("q/tokenizer_config.json", r#"{"added_tokens_decoder": {}}"#);
        let files = with_special_token(files, "q/", "[DEC]", 7);
        let tokenizer = object(&files, "q/tokenizer.json").unwrap();
        assert_eq!(tokenizer["added_tokens"][0]["id"], 7);
        assert_eq!(tokenizer["added_tokens"][0]["content"], "[DEC]");
        let config = object(&files, "q/tokenizer_config.json").unwrap();
        assert_eq!(config["added_tokens_decoder"]["7"]["special"], true);
        assert_eq!(object(&files, "q/added_tokens.json").unwrap()["[DEC]"], 7);
    }
}
