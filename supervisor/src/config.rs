//! What a supervisor is told to run, before anything of it exists.
//!
//! [`mod@file`] reads the TOML file, [`listen`] the notation of a listener, [`service`] holds the
//! settings of one service with every default filled in, [`privileges`], [`pin`] and [`size`] kinds
//! of them. [`trust`] says who else could have a say in a file. Nothing here opens, binds or starts
//! anything; the command line and the file both end in the same [`service::Service`].

pub(crate) mod file;
pub(crate) mod listen;
pub(crate) mod pin;
pub(crate) mod privileges;
pub(crate) mod service;
pub(crate) mod size;
pub(crate) mod trust;
