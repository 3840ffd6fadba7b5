//! `flags!`: declares a word of flags, as a type of its own. A mask of one map's value cannot be tested on another's.
//!
//! Such a type is its number: it has no other layout and costs nothing.

/// Declares a word of flags and the constants of its bits:
/// `flags! { pub struct Marks: u32 { FIRST = 1 << 0; SECOND = 1 << 1, "second"; } }`.
///
/// A flag with a text behind it has a name, for people; see `names`.
#[macro_export]
macro_rules! flags {
    ($(#[$meta:meta])* $vis:vis struct $name:ident: $word:ty {
        $($(#[$flag_meta:meta])* $flag:ident = $bits:expr $(, $text:literal)?;)+
    }) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        $vis struct $name($word);

        #[allow(dead_code, reason = "each word of flags has the same operations")]
        impl $name {
            /// No flag.
            $vis const NONE: Self = Self(0);
            $($(#[$flag_meta])* $vis const $flag: Self = Self($bits);)+

            /// The flags of this number.
            #[inline(always)]
            $vis const fn from_bits(bits: $word) -> Self {
                Self(bits)
            }

            /// The number of these flags.
            #[inline(always)]
            $vis const fn bits(self) -> $word {
                self.0
            }

            /// Whether all of these flags are set.
            #[inline(always)]
            $vis const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// Whether any of these flags is set.
            #[inline(always)]
            $vis const fn intersects(self, flags: Self) -> bool {
                self.0 & flags.0 != 0
            }

            /// These flags and those.
            #[inline(always)]
            $vis const fn with(self, flags: Self) -> Self {
                Self(self.0 | flags.0)
            }

            /// These flags, except those.
            #[inline(always)]
            $vis const fn without(self, flags: Self) -> Self {
                Self(self.0 & !flags.0)
            }

            /// Of these flags only those.
            #[inline(always)]
            $vis const fn only(self, flags: Self) -> Self {
                Self(self.0 & flags.0)
            }

            /// These flags if the condition holds; else none.
            #[inline(always)]
            $vis const fn when(self, condition: bool) -> Self {
                if condition { self } else { Self::NONE }
            }

            /// The names of the flags that are set and have one, in the order of their declaration.
            $vis fn names(self) -> impl Iterator<Item = &'static str> {
                const NAMED: &[(&str, $name)] = &[$($(($text, $name::$flag),)?)+];
                NAMED.iter().filter(move |(_, flag)| self.contains(*flag)).map(|(name, _)| *name)
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;

            #[inline(always)]
            fn bitor(self, flags: Self) -> Self {
                self.with(flags)
            }
        }

        impl core::ops::BitOrAssign for $name {
            #[inline(always)]
            fn bitor_assign(&mut self, flags: Self) {
                *self = self.with(flags);
            }
        }

        impl $crate::pod::Field for $name {
            const ZERO: Self = Self::NONE;
        }
    };
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    crate::flags! {
        /// A word of flags.
        struct Marks: u8 {
            /// Has no name.
            FIRST = 1 << 0;
            /// Has a name.
            SECOND = 1 << 1, "second";
            /// Two bits.
            BOTH = 3 << 2, "both";
        }
    }

    #[test]
    fn a_word_of_flags_is_its_number() {
        assert_eq!((size_of::<Marks>(), align_of::<Marks>()), (1, 1));
        let marks = Marks::FIRST | Marks::BOTH;
        assert_eq!(marks.bits(), 0b1101);
        assert_eq!(Marks::from_bits(0b1101), marks);
        assert_eq!(marks.without(Marks::FIRST), Marks::BOTH);
        assert_eq!(marks.only(Marks::FIRST), Marks::FIRST);
        assert_eq!(marks.when(false), Marks::NONE);
    }

    #[test]
    fn all_or_any_flags_are_set() {
        let half = Marks::from_bits(1 << 2);
        assert!(half.intersects(Marks::BOTH) && !half.contains(Marks::BOTH));
        assert!(!half.intersects(Marks::FIRST | Marks::SECOND));
        assert!((Marks::FIRST | Marks::SECOND).contains(Marks::SECOND));
    }

    #[test]
    fn names_are_those_of_the_flags_that_are_set() {
        let names = |marks: Marks| marks.names().collect::<Vec<_>>();
        assert_eq!(names(Marks::FIRST | Marks::BOTH), ["both"]);
        assert_eq!(names(Marks::BOTH | Marks::SECOND), ["second", "both"]);
        assert!(names(Marks::from_bits(1 << 2)).is_empty(), "one of two bits");
    }
}
