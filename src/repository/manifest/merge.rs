//! Differences between manifests, and their merge, each in one sorted pass.

use std::iter::Peekable;

use super::{Line, STRETCH};
use crate::error::{Error, Result};
use crate::types::UnitName;

/// The lines by which `new` differs from `old`; both in order. Equal lines are left out, missing units are gone.
pub fn difference<'a>(
    new: impl Iterator<Item = Result<Line>> + 'a,
    old: impl Iterator<Item = Result<Line>> + 'a,
) -> impl Iterator<Item = Result<Line>> + 'a {
    let (mut new, mut old) = (new.peekable(), old.peekable());
    std::iter::from_fn(move || {
        loop {
            let take_new = match (new.peek(), old.peek()) {
                (None, None) => return None,
                (Some(Err(_)), _) => return new.next(),
                (_, Some(Err(_))) => return old.next(),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(Ok(n)), Some(Ok(o))) => match n.order().cmp(&o.order()) {
                    std::cmp::Ordering::Less => true,
                    std::cmp::Ordering::Greater => false,
                    std::cmp::Ordering::Equal => {
                        let same = n == o;
                        old.next();
                        if same {
                            new.next();
                            continue;
                        }
                        true
                    }
                },
            };
            if take_new {
                return new.next();
            }
            // Only in the old one: a unit is gone; a stretch beyond the new size is dropped by its unit's line.
            if let Some(Ok(Line::Unit { name, .. })) = old.next() {
                return Some(Ok(Line::Gone { name }));
            }
        }
    })
}

/// Merges a chain of manifests, oldest (the whole one) first, into the lines of the newest.
pub struct Merge<I: Iterator<Item = Result<Line>>> {
    /// Newest first.
    inputs: Vec<Peekable<I>>,
    /// The unit whose stretches are going through, and its size.
    current: Option<(UnitName, u64)>,
    previous: Option<(UnitName, Option<u64>)>,
}

impl<I: Iterator<Item = Result<Line>>> Merge<I> {
    /// From readers, oldest first.
    pub fn new(oldest_first: Vec<I>) -> Self {
        let inputs = oldest_first.into_iter().rev().map(Iterator::peekable).collect();
        Self {
            inputs,
            current: None,
            previous: None,
        }
    }

    /// Takes the newest line of the least order, and drops the older ones of that order.
    fn next_newest(&mut self) -> Option<Result<Line>> {
        let mut least: Option<(UnitName, Option<u64>)> = None;
        for input in &mut self.inputs {
            match input.peek() {
                Some(Err(_)) => return input.next(),
                Some(Ok(line)) => {
                    let (name, at) = line.order();
                    if least.as_ref().is_none_or(|(n, a)| (name, at) < (n, *a)) {
                        least = Some((name.clone(), at));
                    }
                }
                None => {}
            }
        }
        let least = least?;
        if self.previous.as_ref().is_some_and(|p| *p >= least) {
            return Some(Err(Error::damaged(format!(
                "a manifest is out of order at {}",
                least.0
            ))));
        }
        let mut newest = None;
        for input in &mut self.inputs {
            let same = matches!(input.peek(), Some(Ok(line)) if line.order() == (&least.0, least.1));
            if same {
                let line = input.next();
                newest = newest.or(line);
            }
        }
        self.previous = Some(least);
        newest
    }
}

impl<I: Iterator<Item = Result<Line>>> Iterator for Merge<I> {
    type Item = Result<Line>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.next_newest()? {
                Ok(line) => line,
                Err(e) => return Some(Err(e)),
            };
            match &line {
                Line::Gone { .. } => self.current = None,
                Line::Unit { name, size, .. } => {
                    let large = *size > STRETCH;
                    self.current = large.then(|| (name.clone(), *size));
                    return Some(Ok(line));
                }
                Line::Stretch { name, at, .. } => {
                    if self
                        .current
                        .as_ref()
                        .is_some_and(|(n, size)| n == name && at < size)
                    {
                        return Some(Ok(line));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use chrono::DateTime;

    use super::*;
    use crate::repository::manifest::{Extent, ManifestHead, ManifestReader, ManifestWriter};
    use crate::source::{Attributes, Cut};
    use crate::types::RunId;
    use proptest::prelude::*;

    fn run(n: u8) -> RunId {
        RunId::new(ulid::Ulid::from_parts(1, u128::from(n)))
    }

    /// A model of a unit: its stretches, each named by a number.
    type Units = BTreeMap<u8, Vec<u8>>;

    fn lines(units: &Units) -> Vec<Result<Line>> {
        let extent = |v: u8, length: u32| Extent {
            run: run(v),
            pack: 0,
            frame_at: 0,
            frame_length: 9,
            offset: 0,
            length,
        };
        let mut lines = Vec::new();
        for (name, stretches) in units {
            let name = UnitName::from_bytes(format!("u{name}").as_bytes()).unwrap();
            let small = stretches.len() <= 1;
            let size = stretches.len() as u64 * STRETCH;
            lines.push(Ok(Line::Unit {
                name: name.clone(),
                size,
                cut: Cut::Pages,
                attributes: Attributes::default(),
                digest: *blake3::hash(stretches).as_bytes(),
                extents: if small {
                    stretches.iter().map(|v| extent(*v, STRETCH as u32)).collect()
                } else {
                    vec![]
                },
            }));
            if !small {
                for (i, v) in stretches.iter().enumerate() {
                    lines.push(Ok(Line::Stretch {
                        name: name.clone(),
                        at: i as u64 * STRETCH,
                        length: STRETCH as u32,
                        digest: [*v; 32],
                        extents: vec![extent(*v, STRETCH as u32)],
                    }));
                }
            }
        }
        lines
    }

    fn plain(lines: impl Iterator<Item = Result<Line>>) -> Vec<Line> {
        lines.map(Result::unwrap).collect()
    }

    fn head(depth: u32) -> ManifestHead {
        ManifestHead {
            format: 1,
            repository: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            source: "app".parse().unwrap(),
            kind: "pocketbase".into(),
            run: run(1),
            at: DateTime::UNIX_EPOCH,
            partial: false,
            parent: None,
            parent_manifest: None,
            depth,
            runs: (0..=255)
                .map(|n| {
                    (
                        u32::from(n),
                        run(n),
                        "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
                    )
                })
                .collect(),
            index_key: String::new(),
            block_size: 8192,
            facts: serde_json::Value::Null,
        }
    }

    proptest! {
        #[test]
        fn differences_merge_to_the_newest(
            states in proptest::collection::vec(
                proptest::collection::btree_map(0u8..6, proptest::collection::vec(any::<u8>(), 0..4), 0..5), 1..9)
        ) {
            let mut stored: Vec<Vec<u8>> = Vec::new();
            for (i, state) in states.iter().enumerate() {
                let mut writer = ManifestWriter::new(&head(i as u32 + 1), Vec::new()).unwrap();
                if i == 0 {
                    for line in lines(state) { writer.push(&line.unwrap()).unwrap(); }
                } else {
                    for line in difference(lines(state).into_iter(), lines(&states[i - 1]).into_iter()) {
                        writer.push(&line.unwrap()).unwrap();
                    }
                }
                stored.push(writer.finish().unwrap());
                let readers = stored.iter().map(|m| ManifestReader::new(Bytes::from(m.clone()), "m").unwrap()).collect();
                prop_assert_eq!(plain(Merge::new(readers)), plain(lines(state).into_iter()));
            }
        }
    }

    #[test]
    fn a_manifest_that_claims_a_large_window_is_refused() {
        let text = [&serde_json::to_vec(&head(1)).unwrap()[..], b"\n"].concat();
        // A frame of one raw block, without content size and checksum; its window is 2^(10 + exponent).
        let frame = |exponent: u8| {
            let block = (text.len() as u32) << 3 | 1;
            let header = [0x28, 0xB5, 0x2F, 0xFD, 0, exponent << 3];
            Bytes::from([&header[..], &block.to_le_bytes()[..3], &text].concat())
        };
        for (exponent, taken) in [(12, true), (13, true), (14, false), (17, false), (31, false)] {
            let read = ManifestReader::new(frame(exponent), "m");
            assert_eq!(read.is_ok(), taken, "a window of 2^{}", 10 + exponent);
        }
    }

    #[test]
    fn a_manifest_cut_short_is_told() {
        let mut writer = ManifestWriter::new(&head(1), Vec::new()).unwrap();
        for line in lines(&[(1, vec![1, 2, 3])].into()) {
            writer.push(&line.unwrap()).unwrap();
        }
        let whole = writer.finish().unwrap();
        for cut in 0..whole.len() {
            let read = ManifestReader::new(Bytes::from(whole[..cut].to_vec()), "m")
                .map(|r| r.collect::<Result<Vec<_>>>());
            assert!(!matches!(read, Ok(Ok(_))), "cut at {cut}");
        }
    }
}
