//! The status page: server-rendered, read-mostly, without a script.

pub mod html;
pub mod picture;
pub mod view;
