//! What is said beside the answer, on standard error.

use std::fmt;

use lb_core::escape::Escaped;

/// Reports something to the user.
pub fn remark(text: &dyn fmt::Display) {
    eprintln!("kubectl-lb: {}", Escaped(text));
}
