//! Placeholder.
/// Placeholder.
#[derive(Clone)]
pub struct FileDisk;
impl FileDisk {
    /// Placeholder.
    pub fn path_of(&self, _name: &str) -> std::path::PathBuf {
        unimplemented!()
    }
}
