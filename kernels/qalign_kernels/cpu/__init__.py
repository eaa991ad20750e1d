"""The contracts in C++, for x86-64 and ARM, and the resize of pictures in C++ as well."""
