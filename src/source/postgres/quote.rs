//! Names and values in SQL, connection strings and object patterns. Every name that comes from a server is hostile.

/// An SQL identifier, always quoted.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A schema-qualified name.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// An SQL string, right whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A connection string that names a database and nothing else. The programs take any name with a `=` in it, or with
/// `postgres://` before it, for a connection string; a name inside one is taken as it is.
pub(crate) fn conninfo_database(name: &str) -> String {
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Whether a name matches a pattern in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last star stood, and how much of the name it has taken so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// A table pattern of `pg_dump` as regular expressions for schema (if it names one) and table, by the rules of its
/// `patternToSQLRegex`: unquoted letters fold to lower case, `*` is any text, `?` any character, a dot parts schema
/// and table, `$` is literal, and inside double quotes everything is.
pub(crate) fn table_pattern(pattern: &str) -> (Option<String>, String) {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                parts[last].push('"');
            }
            '"' => quoted = !quoted,
            _ if quoted => {
                if "|*+?()[]{}.^$\\".contains(c) {
                    parts[last].push('\\');
                }
                parts[last].push(c);
            }
            '*' => parts[last].push_str(".*"),
            '?' => parts[last].push('.'),
            '.' => parts.push(String::new()),
            '$' => parts[last].push_str("\\$"),
            _ => parts[last].extend(c.to_lowercase()),
        }
    }
    let table = format!("^({})$", parts.pop().unwrap_or_default());
    // A third part before these names the database itself.
    (parts.pop().map(|schema| format!("^({schema})$")), table)
}

/// The items of a setting that is a list of names (`search_path` …): folded and unquoted as the server does.
pub(crate) fn name_list(value: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut chars = value.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
        let mut item = String::new();
        match chars.next() {
            None => return items,
            Some('"') => {
                while let Some(c) = chars.next() {
                    match c {
                        '"' if chars.next_if_eq(&'"').is_some() => item.push('"'),
                        '"' => break,
                        _ => item.push(c),
                    }
                }
            }
            Some(first) => {
                item.push(first);
                while let Some(c) = chars.next_if(|c| *c != ',') {
                    item.push(c);
                }
                item.truncate(item.trim_end().len());
            }
        }
        items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_hostile_names() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("\\'"), "E'\\\\'''");
        assert_eq!(conninfo_database("a'b\\=c"), "dbname='a\\'b\\\\=c'");
    }

    #[test]
    fn patterns_are_those_of_the_dump_program() {
        assert_eq!(table_pattern("Log*"), (None, "^(log.*)$".into()));
        assert_eq!(table_pattern("a.b?"), (Some("^(a)$".into()), "^(b.)$".into()));
        assert_eq!(
            table_pattern("\"A.b\".\"x\"\"*\""),
            (Some("^(A\\.b)$".into()), "^(x\"\\*)$".into())
        );
        assert_eq!(table_pattern("a$[01]"), (None, "^(a\\$[01])$".into()));
    }

    #[test]
    fn lists_of_names() {
        assert_eq!(name_list("\"$user\", public"), ["$user", "public"]);
        assert_eq!(name_list("\"a, \"\"b\", c "), ["a, \"b", "c"]);
        assert_eq!(name_list("\"\""), [""]);
        assert!(name_list(" ").is_empty());
    }

    #[test]
    fn wildcards() {
        assert!(matches("*", "") && matches("a*c", "abbc") && matches("*b*b", "abab") && matches("x", "x"));
        assert!(!matches("a", "ab") && !matches("a*b", "abc") && !matches("", "a"));
    }

    proptest! {
        #[test]
        fn a_pattern_made_from_a_name_matches_it(name in "[a-c*]{0,12}", cut in 0usize..12) {
            let cut = cut.min(name.len());
            let (head, tail) = name.split_at(cut);
            let pattern = format!("{head}*{tail}");
            prop_assert!(matches(&pattern, &name));
        }
    }
}
