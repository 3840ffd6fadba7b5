//! `LabelSelector` → [`Selector`].
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::value::{At, InvalidValue};
use lb_core::cluster::{Operator, Requirement, Selector};

/// Equal selectors become equal records: requirements and values are sorted.
pub(super) fn selector(given: &At<'_>) -> Result<Selector, InvalidValue> {
    given.only(&["matchLabels", "matchExpressions"])?;
    let mut requirements = Vec::new();
    if let Some(labels) = given.get("matchLabels") {
        for (key, value) in labels.fields()? {
            let operator = Operator::In([value.text()?.into()].into());
            requirements.push(Requirement { key: key.into(), operator });
        }
    }
    if let Some(expressions) = given.get("matchExpressions") {
        for expression in expressions.items()? {
            requirements.push(requirement(&expression)?);
        }
    }
    requirements.sort_unstable();
    requirements.dedup();
    Ok(Selector(requirements.into()))
}

fn requirement(given: &At<'_>) -> Result<Requirement, InvalidValue> {
    given.only(&["key", "operator", "values"])?;
    let key = given.need("key")?;
    if key.text()?.is_empty() {
        return Err(key.fault("is empty"));
    }
    let mut values: Vec<Arc<str>> = Vec::new();
    for value in given.get("values").map_or(Ok(Vec::new()), |values| values.items())? {
        values.push(value.text()?.into());
    }
    values.sort_unstable();
    values.dedup();
    let operator = given.need("operator")?;
    let operator = match operator.text()? {
        "In" | "NotIn" if values.is_empty() => {
            return Err(operator.fault("requires values"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            return Err(operator.fault("does not take values"));
        }
        "In" => Operator::In(values.into()),
        "NotIn" => Operator::NotIn(values.into()),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(operator.fault(format!("`{other}` is not an operator"))),
    };
    Ok(Requirement { key: key.text()?.into(), operator })
}
