//! Rust source as the rules see it: comments, texts and test items blanked out, every line where it was.

/// Blanks comments and the contents of texts and characters; newlines stay.
pub fn without_comments_and_texts(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match (chars[at], chars.get(at + 1)) {
            ('/', Some('/')) => end_of_line(&chars, at),
            ('/', Some('*')) => end_of_comment(&chars, at),
            ('"', _) => end_of_text(&chars, at),
            ('r', Some('"' | '#')) if !is_name(&chars, at) => end_of_raw_text(&chars, at),
            ('\'', _) => end_of_character(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Whether a letter goes on a name (`br` begins a raw text too, `var` does not).
fn is_name(chars: &[char], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|i| chars[i]);
    match before(1) {
        Some('b' | 'c') => before(2).is_some_and(is_word),
        Some(c) => is_word(c),
        None => false,
    }
}

fn end_of_line(chars: &[char], from: usize) -> usize {
    let length = chars[from..].iter().position(|c| *c == '\n');
    length.map_or(chars.len(), |n| from + n)
}

fn end_of_comment(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at.min(chars.len())
}

fn end_of_text(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 1,
            '"' => return at + 1,
            _ => {}
        }
        at += 1;
    }
    chars.len()
}

fn end_of_raw_text(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(from + 1 + hashes) != Some(&'"') {
        return from; // a raw name: r#type
    }
    let mut at = from + 2 + hashes;
    while at < chars.len() {
        if chars[at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    chars.len()
}

/// A character; a lifetime is left as it is.
fn end_of_character(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => {
            let length = chars[from + 3..].iter().position(|c| *c == '\'');
            length.map_or(from, |n| from + 3 + n + 1)
        }
        (Some(_), Some('\'')) => from + 3,
        _ => from,
    }
}

/// Blanks every item under `#[cfg(test)]`; gives the names of modules that so stand in files of their own.
pub fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut out = code.to_owned();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(test)]").map(|n| from + n) {
        let body = &out[found..];
        let opens = body.find('{').unwrap_or(body.len());
        let ends = body.find(';').unwrap_or(body.len());
        let length = if ends < opens {
            if let Some(name) = body[..ends]
                .split_whitespace()
                .collect::<Vec<_>>()
                .as_slice()
                .split_last()
                && name.1.ends_with(&["mod"])
            {
                modules.push((*name.0).to_owned());
            }
            ends + 1
        } else {
            closing(body, opens)
        };
        let blank: String = body[..length]
            .chars()
            .flat_map(|c| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8()))
            .collect();
        out.replace_range(found..found + length, &blank);
        from = found + length;
    }
    (out, modules)
}

/// Where the brace that opens at a place is closed.
fn closing(text: &str, opens: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < opens) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// Whether a character belongs to a name.
pub fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Every place of a needle that is no part of a longer name. A needle that ends in `*` may go on.
pub fn places(text: &str, needle: &str) -> Vec<usize> {
    let (needle, open) = needle.strip_suffix('*').map_or((needle, false), |n| (n, true));
    let head = needle.chars().next().is_some_and(is_word);
    let tail = !open && needle.chars().next_back().is_some_and(is_word);
    text.match_indices(needle)
        .map(|(at, _)| at)
        .filter(|at| !head || !text[..*at].chars().next_back().is_some_and(is_word))
        .filter(|at| !tail || !text[at + needle.len()..].chars().next().is_some_and(is_word))
        .collect()
}

/// The line of a place, from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The names that follow a path prefix (`crate::`): one, or the first of each path in a braced group.
pub fn names_after(text: &str, prefix: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in places(text, prefix) {
        let begins = at + prefix.len();
        let rest = &text[begins..];
        if !rest.starts_with('{') {
            found.push((line_of(text, at), word_at(rest)));
            continue;
        }
        let group = &rest[..closing(rest, 0)];
        let mut depth = 0;
        for (inside, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 1 && matches!(c, '{' | ',') {
                let next = group[inside + 1..].trim_start();
                let name = word_at(next);
                if !name.is_empty() {
                    found.push((line_of(text, begins + group.len() - next.len()), name));
                }
            }
        }
    }
    found
}

fn word_at(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}
