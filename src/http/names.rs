//! Closed lists of names, and times, as the API's description shows them. The vocabulary they come from knows nothing of
//! descriptions.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, SchemaFormat, schema::Type},
};

use crate::{
    email::{Lane, Priority, Reason, Status, SuppressionReason},
    store::{
        messages::detail::BodyPart,
        replay::{ItemResult, LetterState, RunState},
    },
};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $description:literal, $names:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new().schema_type(Type::String).description(Some($description)).enum_values(Some($names)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    };
}

named!(
    /// Names of [`Status`].
    StatusName,
    "Where a mail stands",
    Status::ALL.iter().map(|status| status.name())
);

named!(
    /// Names of [`Reason`].
    ReasonName,
    "Why a mail failed for good",
    Reason::ALL.iter().map(|reason| reason.name())
);

named!(
    /// Names of [`SuppressionReason`].
    SuppressionReasonName,
    "Why an address gets no mail: `complaint` and `hard_bounce` stop every mail, the others only marketing",
    SuppressionReason::ALL.iter().map(|reason| reason.name())
);

named!(
    /// Names of [`LetterState`].
    LetterStateName,
    "What became of a dead letter",
    LetterState::ALL.iter().map(|state| state.name())
);

named!(
    /// Names of [`RunState`].
    RunStateName,
    "Where a replay stands",
    RunState::ALL.iter().map(|state| state.name())
);

named!(
    /// Names of [`ItemResult`].
    ItemResultName,
    "What has become of a letter of a replay",
    ItemResult::ALL.iter().map(|result| result.name())
);

named!(
    /// Names of [`Lane`].
    LaneName,
    "Where a mail travels",
    Lane::ALL.iter().map(|lane| lane.name())
);

named!(
    /// Names of [`Priority`].
    PriorityName,
    "How urgent a request is: P0 is an incident, P3 can wait",
    Priority::ALL.iter().map(ToString::to_string)
);

named!(
    /// Names of [`BodyPart`].
    BodyPartName,
    "A part of a mail",
    BodyPart::ALL.iter().map(|part| part.name())
);

named!(
    /// How a mail came back.
    BounceType,
    "How a mail came back",
    ["permanent", "temporary"]
);

/// What `params::time` takes.
pub(super) struct Moment;

impl PartialSchema for Moment {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("date-or-time".to_owned())))
            .pattern(Some(
                r"^(19[7-9]\d|2\d{3})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d))?$",
            ))
            .examples(["2026-11-24", "2026-11-24T18:00:00Z"])
            .into()
    }
}

impl ToSchema for Moment {}
