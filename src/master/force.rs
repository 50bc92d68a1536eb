//! What is sent to a force scheduler: its form, filled in with what was asked for. Pure.
//!
//! The master drops what has no field without a word, so we refuse it; and it takes a builder that
//! the scheduler does not list, so the caller checks that.

use crate::config::is_yes;
use serde_json::{Map, Value};

/// A build to be forced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    pub builder_id: u64,
    pub builder: String,
    pub scheduler: Option<String>,
    pub source: Vec<SourceField>,
    /// Properties: name and value as given. A name may repeat, for a list.
    pub properties: Vec<(String, String)>,
    pub reason: String,
    /// Who asks, in the form of a mail address, which some schedulers insist on.
    pub who: String,
}

/// A branch or a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceField {
    /// Nothing: of the one codebase that there is.
    pub codebase: Option<String>,
    /// `branch` or `revision`.
    pub key: &'static str,
    pub value: String,
}

/// A field of a form.
struct Field<'a> {
    /// The key to send.
    full_name: &'a str,
    json: &'a Value,
}

impl Field<'_> {
    fn has_type(&self, name: &str) -> bool {
        self.json["type"] == name
    }

    fn is_multiple(&self) -> bool {
        self.json["multiple"] == true
    }

    /// Who asks and why is not the asker's to set.
    fn is_free(&self) -> bool {
        !self.has_type("username") && self.full_name != "reason"
    }
}

/// The parameters of a force, for a scheduler's `all_fields`. The error says what was asked for
/// and has no field, or no value that fits.
pub fn fill_form(order: &Order, all_fields: &Value) -> Result<Value, String> {
    let mut fields = Vec::new();
    collect_leaves(all_fields, &mut fields);
    let mut form = defaults(order, &fields);
    fields.retain(Field::is_free);
    for source in &order.source {
        let field = source_field(source, &fields)?;
        let value = checked_value(field, &source.value)?;
        put(&mut form, field, value, &format!("--{}", source.key))?;
    }
    for (name, value) in &order.properties {
        match property_field(name, &fields)? {
            Some(field) => {
                let value = checked_value(field, value)?;
                put(&mut form, field, value, &format!("--props: {name}"))?;
            }
            None => put_any_property(&mut form, &fields, name, value)?,
        }
    }
    // What was not asked for but must be there, even if it has a default (BUILDBOT.md, section 4).
    for field in &fields {
        if field.json["required"] == true && !form.contains_key(field.full_name) {
            let default = field.json["default"].clone();
            form.insert(field.full_name.to_owned(), default);
        }
    }
    Ok(Value::Object(form))
}

/// A form is a tree; its leaves are what is sent.
fn collect_leaves<'a>(form: &'a Value, leaves: &mut Vec<Field<'a>>) {
    for json in form.as_array().into_iter().flatten() {
        if json["type"] == "nested" {
            collect_leaves(&json["fields"], leaves);
        } else if let Some(full_name) = json["fullName"].as_str() {
            leaves.push(Field { full_name, json });
        }
    }
}

/// What every force says: which builder, why, and who asks.
fn defaults(order: &Order, fields: &[Field]) -> Map<String, Value> {
    let mut form = Map::new();
    form.insert("builderid".to_owned(), order.builder_id.into());
    form.insert("reason".to_owned(), order.reason.as_str().into());
    for field in fields.iter().filter(|field| field.has_type("username")) {
        form.insert(field.full_name.to_owned(), order.who.as_str().into());
    }
    form
}

fn source_field<'a, 'b>(
    source: &SourceField,
    fields: &'a [Field<'b>],
) -> Result<&'a Field<'b>, String> {
    let key = source.key;
    let full_name = match &source.codebase {
        Some(codebase) => format!("{codebase}_{key}"),
        None => key.to_owned(),
    };
    let fits = |field: &&Field| {
        field.full_name == full_name || source.codebase.is_none() && field.json["name"] == key
    };
    let mut found = fields.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(field), None) => Ok(field),
        (Some(_), Some(_)) => Err(format!(
            "--{key}: several codebases have one; put --codebase=NAME before it"
        )),
        (None, _) => Err(format!(
            "--{key}: the scheduler does not ask for {full_name}"
        )),
    }
}

/// The field of a property: by its full name, or by its short one if only one field has that.
fn property_field<'a, 'b>(
    name: &str,
    fields: &'a [Field<'b>],
) -> Result<Option<&'a Field<'b>>, String> {
    if let Some(field) = fields.iter().find(|field| field.full_name == name) {
        return Ok(Some(field));
    }
    let mut named = fields.iter().filter(|field| field.json["name"] == name);
    match (named.next(), named.next()) {
        (Some(one), Some(other)) => Err(format!(
            "--props: {name} is {} or {}; say which",
            one.full_name, other.full_name
        )),
        (field, _) => Ok(field),
    }
}

/// Adds a value to the form. One that is there already is added to only where the field is a list.
fn put(
    form: &mut Map<String, Value>,
    field: &Field,
    value: Value,
    option: &str,
) -> Result<(), String> {
    if !field.is_multiple() {
        return match form.insert(field.full_name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("{option} is given twice, and takes one value")),
        };
    }
    let list = form
        .entry(field.full_name)
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = list {
        list.push(value);
    }
    Ok(())
}

/// A property that has no field of its own goes into a pair of fields for any property: `x_name`
/// and `x_value`, if one is left.
fn put_any_property(
    form: &mut Map<String, Value>,
    fields: &[Field],
    name: &str,
    value: &str,
) -> Result<(), String> {
    let has_field = |wanted: &str| fields.iter().any(|field| field.full_name == wanted);
    let stems = fields
        .iter()
        .filter_map(|field| field.full_name.strip_suffix("_name"));
    let stems: Vec<&str> = stems
        .filter(|stem| has_field(&format!("{stem}_value")))
        .collect();
    let key_of = |stem: &&str| format!("{stem}_name");
    if stems
        .iter()
        .any(|stem| form.get(&key_of(stem)).is_some_and(|taken| taken == name))
    {
        return Err(format!(
            "--props: {name} is given twice, and takes one value"
        ));
    }
    let Some(stem) = stems.iter().find(|stem| !form.contains_key(&key_of(stem))) else {
        let known: Vec<&str> = fields.iter().map(|field| field.full_name).collect();
        let known = known.join(" ");
        return Err(format!("--props: no property {name}; there are {known}"));
    };
    form.insert(format!("{stem}_name"), name.into());
    form.insert(format!("{stem}_value"), value.into());
    Ok(())
}

/// A value as the field's type wants it. The master says what is wrong with most of them; but to
/// it any word for a boolean is false, and another value for what is fixed is none.
fn checked_value(field: &Field, value: &str) -> Result<Value, String> {
    let name = field.full_name;
    if field.has_type("bool") {
        let answer = is_yes(value);
        return match answer {
            Some(answer) => Ok(answer.into()),
            None => Err(format!("{name}: `{value}` is neither yes nor no")),
        };
    }
    if field.has_type("fixed") {
        let default = &field.json["default"];
        let fixed = default
            .as_str()
            .map_or_else(|| default.to_string(), str::to_owned);
        if value != fixed {
            return Err(format!("{name} is fixed to {fixed}"));
        }
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The form of a scheduler with two codebases and a field of each type.
    fn all_fields() -> Value {
        let field = |full_name: &str, kind: &str, required, default: Value| {
            let name = full_name.rsplit('_').next();
            json!({
                "name": name, "fullName": full_name, "type": kind,
                "required": required, "default": default, "multiple": full_name == "hosts",
            })
        };
        let text = |full_name: &str| field(full_name, "text", false, "".into());
        let nested = |fields: &[Value]| json!({ "name": null, "fullName": null, "type": "nested", "fields": fields });
        json!([
            field("username", "username", false, "".into()),
            field("reason", "text", true, "because".into()),
            nested(&[text("app_branch")]),
            nested(&[text("lib_branch"), text("lib_revision")]),
            field("level", "int", true, 3.into()),
            field("clean", "bool", false, false.into()),
            field("mode", "list", false, "quick".into()),
            field("hosts", "list", false, json!([])),
            field("fix", "fixed", false, "f".into()),
            nested(&[nested(&[text("extra_name"), text("extra_value")])]),
        ])
    }

    fn filled(
        source: &[(&str, &'static str, &str)],
        properties: &[(&str, &str)],
    ) -> Result<String, String> {
        let source = source.iter().map(|(codebase, key, value)| SourceField {
            codebase: (!codebase.is_empty()).then(|| codebase.to_string()),
            key,
            value: value.to_string(),
        });
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let order = Order {
            builder_id: 7,
            source: source.collect(),
            properties: properties.iter().map(owned).collect(),
            reason: "r".into(),
            who: "joe <joe@irc.invalid>".into(),
            ..Order::default()
        };
        fill_form(&order, &all_fields()).map(|form| form.to_string())
    }

    #[test]
    fn who_asks_and_why_cannot_be_set_by_a_property() {
        let forged = [("username", "boss <boss@corp>"), ("reason", "not me")];
        for one in forged {
            let sent = filled(&[], &[one]).unwrap();
            assert!(
                sent.contains(r#""username":"joe <joe@irc.invalid>""#),
                "{sent}"
            );
            assert!(sent.contains(r#""reason":"r""#), "{sent}");
        }
    }

    #[test]
    fn forms_are_filled_in() {
        let least = r#"{"builderid":7,"level":3,"reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(filled(&[], &[]).unwrap(), least);
        let properties = [
            ("level", "5"),
            ("clean", "yes"),
            ("mode", "full"),
            ("fix", "f"),
            ("free", "x"),
        ];
        let source = [("lib", "branch", "main"), ("lib", "revision", "abc")];
        let full = r#"{"builderid":7,"clean":true,"extra_name":"free","extra_value":"x","fix":"f","level":"5","lib_branch":"main","lib_revision":"abc","mode":"full","reason":"r","username":"joe <joe@irc.invalid>"}"#;
        assert_eq!(filled(&source, &properties).unwrap(), full);
    }

    #[test]
    fn each_branch_goes_to_its_codebase_and_a_list_takes_several_values() {
        let source = [("lib", "branch", "dev"), ("app", "branch", "rel")];
        let sent = filled(&source, &[("hosts", "a"), ("hosts", "b")]).unwrap();
        assert!(sent.contains(r#""app_branch":"rel""#), "{sent}");
        assert!(sent.contains(r#""lib_branch":"dev""#), "{sent}");
        assert!(sent.contains(r#""hosts":["a","b"]"#), "{sent}");
    }

    #[test]
    fn nothing_is_dropped_without_a_word() {
        let twice = "is given twice, and takes one value";
        for (source, properties, error) in [
            (
                vec![("", "branch", "x")],
                vec![],
                "--branch: several codebases have one; put --codebase=NAME before it".to_owned(),
            ),
            (
                vec![("app", "revision", "x")],
                vec![],
                "--revision: the scheduler does not ask for app_revision".to_owned(),
            ),
            (
                vec![("lib", "branch", "x"), ("lib", "branch", "y")],
                vec![],
                format!("--branch {twice}"),
            ),
            (
                vec![],
                vec![("clean", "x")],
                "clean: `x` is neither yes nor no".to_owned(),
            ),
            (vec![], vec![("fix", "x")], "fix is fixed to f".to_owned()),
            (
                vec![],
                vec![("level", "1"), ("level", "2")],
                format!("--props: level {twice}"),
            ),
            (
                vec![],
                vec![("a", "1"), ("a", "2")],
                format!("--props: a {twice}"),
            ),
            (
                vec![],
                vec![("branch", "x")],
                "--props: branch is app_branch or lib_branch; say which".to_owned(),
            ),
            (
                vec![],
                vec![("a", "1"), ("b", "2")],
                "--props: no property b; there are app_branch lib_branch lib_revision level \
                 clean mode hosts fix extra_name extra_value"
                    .to_owned(),
            ),
        ] {
            assert_eq!(filled(&source, &properties).unwrap_err(), error);
        }
    }
}
