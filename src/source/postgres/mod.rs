//! (being built)
use crate::error::{Error, Result};
use crate::source::{Capture, Context, Finding, Source};
/// (being built)
pub struct PostgresSource;
impl PostgresSource {
    /// (being built)
    pub fn new(_p: &crate::policy::PostgresPolicy, _u: crate::secret::SecretText) -> Self {
        Self
    }
}
#[async_trait::async_trait]
impl Source for PostgresSource {
    async fn check(&self, _world: &crate::clock::World) -> Vec<Finding> {
        Vec::new()
    }
    async fn capture(&self, _context: Context) -> Result<Box<dyn Capture>> {
        Err(Error::failed("not built"))
    }
}
/// (being built)
#[derive(Default)]
pub struct LogicalRestorer;
#[async_trait::async_trait]
impl crate::source::Restorer for LogicalRestorer {
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
