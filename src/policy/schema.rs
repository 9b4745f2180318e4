//! The JSON schema of the policy file, made from the one table of keys.

use serde_json::{Map, Value, json};

use super::keys::{NAMED, Type, of_section};

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
