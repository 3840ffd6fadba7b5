//! What this build is.

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, where the build says so by `LB_COMMIT`, as builds of the image do.
pub const COMMIT: &str = match option_env!("LB_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
