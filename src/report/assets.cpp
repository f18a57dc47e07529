#include "report/assets.h"

// The build says where the files lie; the assembler copies their bytes.
#define MT_EMBED(symbol, file)              \
  asm(".pushsection .rodata\n"              \
      ".global " #symbol "_begin\n" #symbol \
      "_begin:"                             \
      ".incbin \"" file                     \
      "\"\n"                                \
      ".global " #symbol "_end\n" #symbol   \
      "_end:"                               \
      ".byte 0\n"                           \
      ".popsection\n");                     \
  extern "C" const char symbol##_begin[], symbol##_end[];

MT_EMBED(mt_page_html, MT_PAGE_DIR "/page.html")
MT_EMBED(mt_page_css, MT_PAGE_DIR "/page.css")
MT_EMBED(mt_page_js, MT_PAGE_DIR "/page.js")
MT_EMBED(mt_chart_js, MT_CHART_JS)

namespace mt {

std::string_view page_html() {
  return {mt_page_html_begin, mt_page_html_end};
}
std::string_view page_css() {
  return {mt_page_css_begin, mt_page_css_end};
}
std::string_view page_js() {
  return {mt_page_js_begin, mt_page_js_end};
}
std::string_view chart_js() {
  return {mt_chart_js_begin, mt_chart_js_end};
}

}  // namespace mt
