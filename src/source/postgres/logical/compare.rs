//! What was recorded against what is there after a restore. Pure.

use std::collections::BTreeMap;

use crate::source::postgres::facts::{DatabaseFacts, Relation, Sequence, SequenceValue};

/// What a comparison found.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Compared {
    /// One sentence each.
    pub(super) differences: Vec<String>,
    /// Not wrong, but worth knowing.
    pub(super) warnings: Vec<String>,
}

/// Compares a whole database. What the policy left out of the dump is not asked for.
pub(super) fn database(recorded: &DatabaseFacts, found: &DatabaseFacts) -> Compared {
    let mut out = Compared::default();
    let name = &recorded.name;
    let mut differs = |text: String| out.differences.push(format!("database {name:?}: {text}"));
    for schema in recorded.schemas.iter().filter(|s| !found.schemas.contains(s)) {
        differs(format!("schema {schema:?} is missing"));
    }
    let mut there: BTreeMap<(&str, &str), &Relation> = found
        .relations
        .iter()
        .map(|r| ((r.schema.as_str(), r.name.as_str()), r))
        .collect();
    for r in &recorded.relations {
        let other = there.remove(&(r.schema.as_str(), r.name.as_str()));
        if !r.excluded {
            relation(r, other, &mut differs);
        }
    }
    for r in there.values() {
        differs(format!("{} was not there when the backup was made", shown(r)));
    }
    let sequences: BTreeMap<(&str, &str), &Sequence> = found
        .sequences
        .iter()
        .map(|s| ((s.schema.as_str(), s.name.as_str()), s))
        .collect();
    for s in recorded.sequences.iter().filter(|s| !s.excluded) {
        let label = format!("sequence {:?}.{:?}", s.schema, s.name);
        match sequences.get(&(s.schema.as_str(), s.name.as_str())) {
            None => differs(format!("{label} is missing")),
            Some(other) if !stands_between(s, other.before) => differs(format!(
                "{label} stands at {}, recorded is {}",
                stand(other.before),
                stand(s.before)
            )),
            Some(_) => {}
        }
    }
    if recorded.large_objects != found.large_objects {
        differs(format!(
            "{} large objects, recorded are {}",
            found.large_objects, recorded.large_objects
        ));
    }
    for (what, many) in &recorded.counts {
        let other = found.counts.get(what).copied().unwrap_or_default();
        if other != *many {
            differs(format!("{other} {what}, recorded are {many}"));
        }
    }
    for e in &recorded.extensions {
        match found.extensions.iter().find(|f| f.name == e.name) {
            None => differs(format!("extension {:?} is missing", e.name)),
            Some(f) if f.version != e.version => out.warnings.push(format!(
                "database {name:?}: extension {:?} has version {}, recorded is {}",
                e.name, f.version, e.version
            )),
            Some(_) => {}
        }
    }
    out
}

/// Compares one table only.
pub(super) fn table(recorded: &DatabaseFacts, found: &DatabaseFacts, schema: &str, name: &str) -> Compared {
    let mut out = Compared::default();
    let same = |r: &&Relation| r.schema == schema && r.name == name;
    match recorded.relations.iter().find(same) {
        None => out.differences.push(format!(
            "database {:?}: the point has no table {schema:?}.{name:?}",
            recorded.name
        )),
        Some(r) if r.excluded => out.differences.push(format!(
            "database {:?}: {} was left out of the backup by the policy",
            recorded.name,
            shown(r)
        )),
        Some(r) => relation(r, found.relations.iter().find(same), &mut |text| {
            out.differences
                .push(format!("database {:?}: {text}", recorded.name));
        }),
    }
    out
}

fn relation(recorded: &Relation, found: Option<&Relation>, differs: &mut impl FnMut(String)) {
    let Some(found) = found else {
        differs(format!("{} is missing", shown(recorded)));
        return;
    };
    if found.kind != recorded.kind {
        differs(format!("{} is now a {}", shown(recorded), found.kind.name()));
    }
    match (recorded.rows, found.rows) {
        (Some(r), Some(f)) if r != f => {
            differs(format!("{} has {f} rows, recorded are {r}", shown(recorded)));
        }
        (Some(r), None) => differs(format!(
            "{} could not be counted, recorded are {r} rows",
            shown(recorded)
        )),
        _ => {}
    }
    if recorded.populated == Some(true) && found.populated == Some(false) {
        differs(format!("{} holds no data", shown(recorded)));
    }
}

fn shown(r: &Relation) -> String {
    format!("{} {:?}.{:?}", r.kind.name(), r.schema, r.name)
}

/// A sequence was read before and after the dump; what the dump holds was read between. Where it stood still the value
/// must be that one; where it moved, one between; where it could not be read again, anything.
fn stands_between(recorded: &Sequence, found: SequenceValue) -> bool {
    let Some(after) = recorded.after else { return true };
    if recorded.before == after {
        return found == after;
    }
    let (low, high) = if recorded.before.last_value <= after.last_value {
        (recorded.before.last_value, after.last_value)
    } else {
        (after.last_value, recorded.before.last_value)
    };
    (low..=high).contains(&found.last_value)
}

fn stand(v: SequenceValue) -> String {
    if v.is_called {
        v.last_value.to_string()
    } else {
        format!("{} (not called)", v.last_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::facts::{Extension, RelationKind};

    fn table_of(name: &str, rows: u64) -> Relation {
        Relation {
            schema: "public".into(),
            name: name.into(),
            kind: RelationKind::Table,
            rows: Some(rows),
            unlogged: false,
            excluded: false,
            populated: None,
        }
    }

    fn at(last_value: i64) -> SequenceValue {
        SequenceValue {
            last_value,
            is_called: true,
        }
    }

    fn sequence(before: i64, after: Option<i64>) -> Sequence {
        Sequence {
            schema: "public".into(),
            name: "s".into(),
            before: at(before),
            after: after.map(at),
            excluded: false,
        }
    }

    fn facts() -> DatabaseFacts {
        DatabaseFacts {
            name: "d".into(),
            schemas: vec!["public".into()],
            relations: vec![table_of("a", 1), table_of("b", 2)],
            sequences: vec![sequence(5, Some(5))],
            extensions: vec![Extension {
                name: "x".into(),
                version: "1".into(),
            }],
            large_objects: 3,
            counts: [("indexes".to_owned(), 4)].into(),
            schema_digest: None,
            unmatched: Vec::new(),
        }
    }

    #[test]
    fn equal_facts_have_no_difference() {
        assert_eq!(database(&facts(), &facts()), Compared::default());
    }

    #[test]
    fn every_difference_is_told() {
        let mut found = facts();
        found.schemas.clear();
        found.relations = vec![table_of("b", 9), table_of("c", 0)];
        found.sequences = vec![sequence(6, None)];
        found.extensions.clear();
        found.large_objects = 0;
        found.counts.clear();
        let out = database(&facts(), &found);
        assert_eq!(out.differences.len(), 8, "{:#?}", out.differences);
        assert!(
            out.differences
                .iter()
                .any(|d| d.contains("\"b\" has 9 rows, recorded are 2"))
        );
    }

    #[test]
    fn what_was_left_out_is_not_asked_for() {
        let mut recorded = facts();
        recorded.relations[0].excluded = true;
        recorded.relations[0].rows = None;
        let mut found = facts();
        found.relations[0].rows = Some(0);
        assert_eq!(database(&recorded, &found), Compared::default());
    }

    #[test]
    fn a_newer_extension_is_a_warning() {
        let mut found = facts();
        found.extensions[0].version = "2".into();
        let out = database(&facts(), &found);
        assert!(out.differences.is_empty() && out.warnings.len() == 1);
    }

    #[test]
    fn a_sequence_that_moved_may_stand_between() {
        let moved = sequence(5, Some(9));
        assert!(
            stands_between(&moved, at(5)) && stands_between(&moved, at(9)) && stands_between(&moved, at(7))
        );
        assert!(!stands_between(&moved, at(4)) && !stands_between(&moved, at(10)));
        assert!(stands_between(&sequence(9, Some(5)), at(7)));
        assert!(!stands_between(&sequence(5, Some(5)), at(6)));
        assert!(stands_between(&sequence(5, None), at(60)));
    }
}
