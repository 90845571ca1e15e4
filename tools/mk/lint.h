/* lint.h - what cppcheck must know of cJSON, whose headers it does not read. */
#define cJSON_ArrayForEach(element, array) for (element = (array) ? (array)->child : NULL; element; element = element->next)
