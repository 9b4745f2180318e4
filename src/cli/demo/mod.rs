//! `backup demo`
use super::Surroundings;
use super::args::DemoArgs;
use crate::error::{Error, Result};
pub async fn demo(surroundings: &Surroundings, args: &DemoArgs) -> Result<u8> {
    let _ = (surroundings, args.keep);
    Err(Error::failed("x"))
}
