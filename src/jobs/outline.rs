//! What can be told of a point without reading all of it: its manifest, and the small units that its restorer asks for.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::repository::manifest::Line;
use crate::repository::reader::OpenPoint;
use crate::source::{Outline, Restorer, Wanted};

/// The largest unit whose content is taken into memory.
const CONTENT_BYTES_MAX: u64 = 64 << 20;

/// Reads what a restorer wants to know of a point before it begins.
///
/// # Errors
/// Damaged or missing objects.
pub async fn outline(point: &OpenPoint, restorer: &dyn Restorer) -> Result<Outline> {
    let mut outline = Outline::default();
    // A large document is a line of its own, followed by its stretches.
    let mut large: Option<(String, u64, BytesMut)> = None;
    for line in point.lines()? {
        let line = line?;
        match &line {
            Line::Unit {
                name, size, extents, ..
            } => {
                close(&mut outline, large.take())?;
                let wanted = restorer.wants(name);
                if wanted == Wanted::Nothing {
                    continue;
                }
                outline.sizes.insert(name.to_string(), *size);
                if wanted == Wanted::Size {
                    continue;
                }
                if *size > CONTENT_BYTES_MAX {
                    return Err(Error::damaged(format!("{name} is larger than it can be")));
                }
                if extents.is_empty() && *size > 0 {
                    large = Some((name.to_string(), *size, BytesMut::new()));
                } else {
                    outline
                        .documents
                        .insert(name.to_string(), point.fetch(&line).await?);
                }
            }
            Line::Stretch { name, at, .. } => {
                if let Some((of, _, content)) = large.as_mut().filter(|(of, ..)| name.as_str() == of) {
                    if *at != content.len() as u64 {
                        return Err(Error::damaged(format!("a manifest lacks a stretch of {of}")));
                    }
                    content.extend_from_slice(&point.fetch(&line).await?);
                }
            }
            Line::Gone { .. } => {}
        }
    }
    close(&mut outline, large)?;
    Ok(outline)
}

fn close(outline: &mut Outline, large: Option<(String, u64, BytesMut)>) -> Result<()> {
    let Some((name, size, content)) = large else {
        return Ok(());
    };
    if content.len() as u64 != size {
        return Err(Error::damaged(format!("a manifest lacks a stretch of {name}")));
    }
    outline.documents.insert(name, Bytes::from(content));
    Ok(())
}
