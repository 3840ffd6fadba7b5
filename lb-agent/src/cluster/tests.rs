//! Tests of the cluster table.
