/* A fast kernel would come here. */
// And here.
