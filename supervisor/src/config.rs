//! What a supervisor is told to run, before anything of it exists.
//!
//! [`mod@file`] reads the TOML file, [`listen`] the notation of a listener, [`service`] holds the
//! settings of one service with every default filled in, [`size`] amounts of bytes. Nothing here opens, binds or starts
//! anything; the command line and the file both end in the same [`service::Service`].

pub(crate) mod file;
pub(crate) mod listen;
pub(crate) mod service;
pub(crate) mod size;
