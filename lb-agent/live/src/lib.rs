//! The live views of lbctl: a page in the browser (`ui`) and a screen in the terminal (`top`).
//!
//! ```text
//! lbctl COMMAND -o json ──► lbctl.rs ──┬─► ui: localhost HTTP ──► ui/index.html, app.css, app.js
//!                                      └─► top: samples ──► state ──► draw(&TopState)
//! ```
//! Both run lbctl's own commands and show their answers. They reach neither the kernel nor the cluster by themselves.

pub mod lbctl;
pub mod top;
pub mod ui;
