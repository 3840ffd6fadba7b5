//! Tests of the conversion to records.
