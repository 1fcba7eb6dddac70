//! Code for the vector instructions of the CPU that the program runs on.

/// Defines functions that are compiled for the instructions that [`pulp`] knows, the best of which is
/// chosen when they are called. Bodies should be loops over `#[inline(always)]` functions: a closure or
/// function that the compiler does not inline is compiled for the oldest CPU.
///
/// All references of the arguments have the one lifetime.
macro_rules! vectorised {
    ($(
        $(#[$attribute:meta])*
        $vis:vis fn $name:ident<$life:lifetime>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $output:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$life>($($argument: $type),*) $(-> $output)? {
            struct Call<$life> {
                $($argument: $type,)*
            }

            impl<$life> pulp::NullaryFnOnce for Call<$life> {
                type Output = vectorised!(@output $($output)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }

            pulp::Arch::new().dispatch(Call { $($argument),* })
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}

pub(super) use vectorised;
