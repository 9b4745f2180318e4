//! (being built)
use crate::error::{Error, Result};
use crate::source::{Capture, Context, Finding, Source};
/// (being built)
pub struct PocketBaseSource;
impl PocketBaseSource {
    /// (being built)
    pub fn new(
        _p: &crate::policy::PocketBasePolicy,
        _s: Option<(crate::secret::SecretText, crate::secret::SecretText)>,
    ) -> Self {
        Self
    }
}
#[async_trait::async_trait]
impl Source for PocketBaseSource {
    async fn check(&self, _world: &crate::clock::World) -> Vec<Finding> {
        Vec::new()
    }
    async fn capture(&self, _context: Context) -> Result<Box<dyn Capture>> {
        Err(Error::failed("not built"))
    }
}
/// (being built)
#[derive(Default)]
pub struct PocketBaseRestorer;
#[async_trait::async_trait]
impl crate::source::Restorer for PocketBaseRestorer {
    async fn examine(
        &self,
        _c: &Context,
        _t: &crate::source::Target,
        _o: &crate::source::RestoreOptions,
    ) -> Result<()> {
        Ok(())
    }
    async fn restore(
        &self,
        _c: &Context,
        _p: &mut dyn crate::source::PointContent,
        _t: &crate::source::Target,
        _o: &crate::source::RestoreOptions,
    ) -> Result<crate::source::Restored> {
        Err(Error::failed("not built"))
    }
}
