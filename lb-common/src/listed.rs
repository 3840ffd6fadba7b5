//! `listed!`: declares an enum whose variants have names and texts, each variant in one place.
//!
//! Numbers, names and texts of drop reasons, counters and causes are in maps, metrics, output and the book. One line
//! declares all of them, so that none can be forgotten or differ; tests compare the tables of the book with it.

/// Declares an enum by lines of `Variant = number: "name", "meaning", "what to do";`. Number and what to do are optional.
///
/// Generates the derives, the meaning as the variant's documentation, and `ALL`, `name`, `meaning`, `what_to_do`.
#[macro_export]
macro_rules! listed {
    ($(#[$meta:meta])* pub enum $type:ident {
        $($variant:ident $(= $number:literal)?: $name:literal, $meaning:literal;)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type {
            $(#[doc = $meaning] $variant $(= $number)?,)+
        }

        impl $type {
            /// All of them, in the order of their declaration.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in metrics, tables and output; it never changes its meaning.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it means, in sentences.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }
        }
    };
    ($(#[$meta:meta])* pub enum $type:ident {
        $($variant:ident $(= $number:literal)?: $name:literal, $meaning:literal, $advice:literal;)+
    }) => {
        $crate::listed! {
            $(#[$meta])*
            pub enum $type {
                $($variant $(= $number)?: $name, $meaning;)+
            }
        }

        impl $type {
            /// What the operator can do about it.
            pub const fn what_to_do(self) -> &'static str {
                match self {
                    $(Self::$variant => $advice,)+
                }
            }
        }
    };
}

/// Gives the variants of an enum that [`listed!`] declares, which have numbers, a bit each in a word of flags: from this bit on, by
/// their numbers.
///
/// Generates `FIRST_BIT`, `bit` and `among`.
#[macro_export]
macro_rules! listed_bits {
    ($type:ident from $first:literal) => {
        impl $type {
            /// The first of their bits in a word of flags.
            pub const FIRST_BIT: u32 = $first;

            /// Its bit in a word of flags.
            pub const fn bit(self) -> u32 {
                1 << (Self::FIRST_BIT + self as u32)
            }

            /// Those whose bits are set, in the order of their declaration.
            pub fn among(bits: u32) -> impl Iterator<Item = Self> {
                Self::ALL.into_iter().filter(move |one| bits & one.bit() != 0)
            }
        }
    };
}
