//! `--set section.key=value`: one value of a recipe replaced from the command line.

use toml::{Table, Value};

use super::RecipeError;

/// Puts the value into the table. The value is read as TOML; what is none is a string, so that paths need no
/// quotes. A number in the key is the index of a list (`data.train.0.path`).
pub fn apply(table: &mut Table, argument: &str) -> Result<(), RecipeError> {
    let fail = |reason: String| RecipeError::Set {
        argument: argument.into(),
        reason,
    };
    let (key, text) = argument
        .split_once('=')
        .ok_or_else(|| fail("write section.key=value".into()))?;
    let mut parts: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = parts.pop().filter(|last| !last.is_empty());
    let last = last.ok_or_else(|| fail("the key is empty".into()))?;
    let mut place = table;
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let entry = place.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let entry = match (entry, parts.peek().and_then(|index| index.parse::<usize>().ok())) {
            (Value::Array(list), Some(index)) => {
                parts.next();
                let count = list.len();
                list.get_mut(index)
                    .ok_or_else(|| fail(format!("`{part}` has {count} entries, counted from 0")))?
            }
            (entry, _) => entry,
        };
        place = entry
            .as_table_mut()
            .ok_or_else(|| fail(format!("`{part}` is a value, not a section")))?;
    }
    place.insert(last.into(), value(text.trim()));
    Ok(())
}

fn value(text: &str) -> Value {
    let parsed: Option<Table> = toml::from_str(&format!("v = {text}")).ok();
    let value = parsed.and_then(|mut table| table.remove("v"));
    value.unwrap_or_else(|| Value::String(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str, argument: &str) -> Result<Table, RecipeError> {
        let mut table: Table = toml::from_str(text).unwrap();
        apply(&mut table, argument).map(|()| table)
    }

    #[test]
    fn values_are_toml_or_words() {
        let text = "a = 1\n[s]\nx = 2\n[[d.t]]\npath = \"p\"\n[[d.t]]\npath = \"q\"";
        assert_eq!(after(text, "a=1e-4").unwrap()["a"].as_float(), Some(1e-4));
        assert_eq!(after(text, "s.x = true").unwrap()["s"]["x"].as_bool(), Some(true));
        assert_eq!(
            after(text, "s.y.z=runs/one").unwrap()["s"]["y"]["z"].as_str(),
            Some("runs/one")
        );
        assert_eq!(
            after(text, "s.l=[1, 2]").unwrap()["s"]["l"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let list = after(text, "d.t.1.path={0..3}.tar").unwrap();
        assert_eq!(list["d"]["t"][1]["path"].as_str(), Some("{0..3}.tar"));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for argument in ["a", "=1", "a.b=1", "d.t.2.path=x"] {
            let error = after("a = 1\n[[d.t]]\npath = \"p\"", argument)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(&format!("--set {argument}: ")), "{error}");
        }
    }
}
