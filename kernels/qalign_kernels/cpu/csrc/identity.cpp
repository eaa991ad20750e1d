// What a library says of itself: the fingerprint of the sources that it was compiled from (see ../sources.py).
extern "C" __attribute__((visibility("default"))) const char* qk_sources() { return QK_SOURCES; }
