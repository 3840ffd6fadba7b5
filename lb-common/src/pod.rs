//! `pod!`: declares a type that crosses the boundary between kernel and user space, and proves its layout.
//!
//! A type made by `pod!` is `repr(C)`, has exactly the size its author wrote, has no hidden padding, and only
//! has fields that are valid for every bit pattern ([`Field`]). Violations do not compile.

/// A type that may be a field of a map key, a map value or an event: plain integers, arrays of them, the
/// byte-order newtypes, and other `pod!` types. `bool` and enums are not: not every byte is one of theirs.
pub trait Field: Copy {
    /// The value whose bytes are all zero.
    const ZERO: Self;
}

impl Field for u8 {
    const ZERO: Self = 0;
}
impl Field for u16 {
    const ZERO: Self = 0;
}
impl Field for u32 {
    const ZERO: Self = 0;
}
impl Field for u64 {
    const ZERO: Self = 0;
}
impl<T: Field, const N: usize> Field for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}

/// One field of a `pod!` type: name, byte offset and byte size. The golden layout test prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Field name.
    pub name: &'static str,
    /// Offset in bytes from the start of the type.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// Declares a boundary type with its size in bytes: `pod! { pub struct Key: 20 { pub a: u32, .. } }`.
///
/// Generates `repr(C)`, the derives, `ZERO`, `LAYOUT`, and compile-time proofs that the size is the one written
/// and that the fields fill it without padding. With the feature `user`, also `aya::Pod`.
#[macro_export]
macro_rules! pod {
    ($(#[$meta:meta])* pub struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        const _: () = {
            assert!(size_of::<$name>() == $size, "the size written is not the size of the type");
            assert!(0 $(+ size_of::<$type>())+ == $size, "the type has hidden padding");
        };

        impl $name {
            /// The value whose bytes are all zero.
            pub const ZERO: Self = Self { $($field: <$type as $crate::pod::Field>::ZERO,)+ };

            /// Name, offset and size of each field, in order.
            pub const LAYOUT: &'static [$crate::pod::FieldLayout] = &[
                $($crate::pod::FieldLayout {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    size: size_of::<$type>(),
                },)+
            ];
        }

        #[cfg(not(target_arch = "bpf"))]
        impl $name {
            /// Reports each field that differs, by its name, with both values.
            pub fn each_difference(
                &self,
                other: &Self,
                report: &mut dyn FnMut(&'static str, &dyn core::fmt::Debug, &dyn core::fmt::Debug),
            ) {
                $(if self.$field != other.$field {
                    report(stringify!($field), &self.$field, &other.$field);
                })+
            }
        }

        impl $crate::pod::Field for $name {
            const ZERO: Self = $name::ZERO;
        }

        // SAFETY: `repr(C)`, no padding (proved above), and every field is a `Field`, valid for every bit pattern.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}
