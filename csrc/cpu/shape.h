#pragma once

#include <cstdint>

namespace pnf::cpu {

// [batch, channels, sites], or [batch, sites, channels] with the channels last.
struct Channels {
  int64_t batch, channels, sites;
  bool channels_last;
};

}  // namespace pnf::cpu
