//! Types that have no JSON of their own, or one for people, in traces that travel from a node to a laptop.

use lb_common::past::StackReason;
use lb_common::verdict::DropReason;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use crate::attribution::DecidedBy;

/// Returns the one that has the name.
fn named<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, D::Error> {
    let wanted = String::deserialize(deserializer)?;
    let found = all.iter().find(|one| name(**one) == wanted).copied();
    found.ok_or_else(|| D::Error::custom(format!("{wanted} is not known to this version")))
}

pub(super) mod drop_reason {
    use super::{Deserializer, DropReason, Serializer, named};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &DropReason,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.name())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DropReason, D::Error> {
        named(deserializer, &DropReason::ALL, DropReason::name)
    }
}

pub(super) mod stack_reason {
    use super::{Deserializer, Serializer, StackReason, named};

    pub(in super::super) fn serialize<S: Serializer>(
        value: &StackReason,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.name())
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<StackReason, D::Error> {
        named(deserializer, &StackReason::ALL, StackReason::name)
    }
}

pub(super) mod decided_by {
    use super::{DecidedBy, Deserialize, Deserializer, Serializer};
    use serde::Serialize as _;

    pub(in super::super) fn serialize<S: Serializer>(
        value: &DecidedBy,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (&value.policies, &value.rule).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DecidedBy, D::Error> {
        let (policies, rule) = Deserialize::deserialize(deserializer)?;
        Ok(DecidedBy { policies, rule })
    }
}
