//! The JSON schema of the policy file and the page about its keys, made from the one table of keys.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::keys::{KEYS, NAMED, Type, of_section};

/// The schema, draft 2020-12.
pub fn schema() -> Value {
    let mut root = section("");
    let named = Map::from_iter(NAMED.map(|(name, doc)| {
        let one = json!({"type": "object", "description": doc, "additionalProperties": section(name)});
        (name.to_owned(), one)
    }));
    if let Some(properties) = root.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(named);
    }
    if let Some(root) = root.as_object_mut() {
        root.insert(
            "$schema".into(),
            json!("https://json-schema.org/draft/2020-12/schema"),
        );
        root.insert("title".into(), json!("Lifeboat policy"));
    }
    root
}

fn section(name: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in of_section(name) {
        let mut value = value(key.kind);
        // A Postgres URL is a secret, the other kinds' URLs are not.
        if (key.section, key.name) == ("source", "url") {
            value = json!({"oneOf": [{"type": "string"}, self::value(Type::Secret)]});
        }
        if let Some(object) = value.as_object_mut() {
            object.insert("description".into(), json!(key.doc));
        }
        properties.insert(key.name.to_owned(), value);
        if key.required {
            required.push(key.name);
        }
    }
    json!({"type": "object", "additionalProperties": false, "properties": properties, "required": required})
}

fn value(kind: Type) -> Value {
    match kind {
        Type::Text | Type::Duration => json!({"type": "string"}),
        Type::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Type::Integer => json!({"type": "integer", "minimum": 0}),
        Type::Signed => json!({"type": "integer"}),
        Type::Boolean => json!({"type": "boolean"}),
        Type::Size => json!({"type": ["integer", "string"]}),
        Type::OneOf(texts) => json!({"enum": texts}),
        Type::Table(name) => section(name),
        Type::Tables(name) => json!({"type": "array", "items": section(name)}),
        Type::Secret => json!({
            "type": "object",
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "env": {"type": "string"},
                "file": {"type": "string"},
                "credential": {"type": "string"}
            }
        }),
    }
}

/// The page about every key, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# The keys of a policy\n\nMade from the table that the parser uses. [example.toml](example.toml) shows every key in use; \
         [environment.md](environment.md) tells about secrets and variables. A relative path, of whatever key and of a secret's file, is taken from the directory of the policy file.\n",
    );
    let mut sections: Vec<&str> = Vec::new();
    for key in KEYS {
        if !sections.contains(&key.section) {
            sections.push(key.section);
        }
    }
    for section in sections {
        // Writing to a String can not fail.
        let _ = write!(
            page,
            "\n## {}\n\n| key | type | |\n|---|---|---|\n",
            title(section)
        );
        for key in of_section(section) {
            let required = if key.required { "**required**; " } else { "" };
            let doc = key.doc.replace('|', "\\|");
            let _ = writeln!(
                page,
                "| `{}` | {} | {required}{doc} |",
                key.name,
                type_name(section, key.name, key.kind)
            );
        }
    }
    page
}

fn title(section: &str) -> String {
    if section.is_empty() {
        return "At the top".to_owned();
    }
    if NAMED.iter().any(|(name, _)| *name == section) {
        return format!("`[{section}.NAME]`");
    }
    match KEYS
        .iter()
        .find(|k| matches!(k.kind, Type::Table(t) | Type::Tables(t) if t == section))
    {
        Some(key) if !key.section.is_empty() => format!("`{} = …` of `{}`", key.name, key.section),
        _ => format!("`[{section}]`"),
    }
}

fn type_name(section: &str, name: &str, kind: Type) -> String {
    match kind {
        Type::Text if (section, name) == ("source", "url") => "text or secret".to_owned(),
        Type::Text => "text".to_owned(),
        Type::Texts => "list of texts".to_owned(),
        Type::Integer | Type::Signed => "whole number".to_owned(),
        Type::Boolean => "true or false".to_owned(),
        Type::Duration => "duration".to_owned(),
        Type::Size => "size".to_owned(),
        Type::Secret => "secret".to_owned(),
        Type::OneOf(texts) => texts
            .iter()
            .map(|t| format!("`{t}`"))
            .collect::<Vec<_>>()
            .join(", "),
        Type::Table(_) => "table".to_owned(),
        Type::Tables(_) => "list of tables".to_owned(),
    }
}
